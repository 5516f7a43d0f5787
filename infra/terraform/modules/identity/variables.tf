variable "cluster_name" {
  description = "EKS cluster in which the pods run."
  type        = string

  validation {
    condition     = length(var.cluster_name) <= 37
    error_message = "At most 37 characters: a role's name has 64, and begins with it."
  }
}

variable "cluster_arn" {
  description = "Its ARN: the roles trust pods of this cluster alone."
  type        = string
}

variable "namespace" {
  description = "Namespace of launcher and jobs."
  type        = string
  default     = "training"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "A name of a Kubernetes namespace."
  }
}

variable "documents" {
  description = "IAM policy as JSON by step, or launcher: output documents of the module policies."
  type        = map(string)

  validation {
    condition     = alltrue([for who in keys(var.documents) : can(regex("^[a-z][a-z_]{0,30}$", who))])
    error_message = "Steps are named in lower-case letters and underscores."
  }
}
