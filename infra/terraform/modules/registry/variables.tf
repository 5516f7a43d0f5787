variable "prefix" {
  description = "Folder of the repositories: PREFIX of images/docker-bake.json without the registry's host."
  type        = string
  default     = "kubealign"

  validation {
    condition     = can(regex("^[a-z0-9]+([._/-][a-z0-9]+)*$", var.prefix))
    error_message = "Lower-case letters and digits, joined by one of . _ - /"
  }
}

variable "images" {
  description = "One repository each: the targets of images/docker-bake.json."
  type        = set(string)
  default = [
    "annotate", "base-model", "data-prep", "evaluate", "launcher", "pmp", "ppo", "reward-model", "sample-responses",
    "sft", "training",
  ]
}

variable "keep" {
  description = "Tagged images that are kept of each; older ones are deleted."
  type        = number
  default     = 20

  validation {
    condition     = var.keep >= 2
    error_message = "Keep two at least: what runs, and what to go back to."
  }
}

variable "force_delete" {
  description = "Let terraform destroy delete repositories that still hold images."
  type        = bool
  default     = false
}
