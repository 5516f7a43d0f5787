variable "bucket" {
  description = "Name of the bucket, unique among all of AWS."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "3 to 63 lower-case letters, digits and hyphens; no dots, since TLS certificates of S3 cover none."
  }
}

variable "root" {
  description = "Folder in the bucket under which runs/, datasets/ and models/ lie; empty for the bucket itself."
  type        = string
  default     = ""

  validation {
    condition     = var.root == "" || can(regex("^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$", var.root))
    error_message = "A relative path without a slash at either end, such as team/alignment."
  }
}

variable "kms" {
  description = "Encrypt with a KMS key of our own (true) or with S3's (false). Both are on for every object."
  type        = bool
  default     = true
}

variable "noncurrent_days" {
  description = "Days that an overwritten or deleted object can still be brought back. Pruned checkpoints cost for that long."
  type        = number
  default     = 3

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "S3 counts whole days, from 1."
  }
}

variable "model_noncurrent_days" {
  description = "The same under models/ and datasets/, which are small and dear."
  type        = number
  default     = 90

  validation {
    condition     = var.model_noncurrent_days >= 1
    error_message = "S3 counts whole days, from 1."
  }
}

variable "run_cold_days" {
  description = "Days after which what a run has left moves to Intelligent-Tiering; 0: never."
  type        = number
  default     = 30

  validation {
    condition     = var.run_cold_days >= 0
    error_message = "Days are not negative."
  }
}

variable "run_expiry_days" {
  description = "Days after which everything under runs/ is deleted, its models too; 0: never."
  type        = number
  default     = 0

  validation {
    condition     = var.run_expiry_days == 0 || var.run_expiry_days > var.run_cold_days
    error_message = "Runs must live longer than run_cold_days."
  }
}

variable "force_destroy" {
  description = "Let terraform destroy delete a bucket that still holds objects. For trials only."
  type        = bool
  default     = false
}
