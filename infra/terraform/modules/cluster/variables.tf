variable "name" {
  description = "Name of the cluster, and prefix of its roles."
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9][a-zA-Z0-9-]{0,36}$", var.name))
    error_message = "1 to 37 letters, digits and hyphens: names of roles begin with it."
  }
}

variable "kubernetes_version" {
  description = "Minor version of Kubernetes; choose one in standard support, since extended support costs six times as much."
  type        = string

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version))
    error_message = "A minor version, such as 1.34."
  }
}

variable "subnet_ids" {
  description = "Private subnets in two zones at least."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "EKS wants subnets in two zones."
  }
}

variable "public_access_cidrs" {
  description = "Networks that may reach the API server from the internet; none: it is private, and reached from the VPC alone."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : can(cidrhost(cidr, 0)) && !endswith(cidr, "/0")])
    error_message = "Networks such as 203.0.113.0/24; not the whole internet."
  }
}

variable "admin_arns" {
  description = "IAM roles or users that administer the cluster. Whoever applies this is none by that alone."
  type        = set(string)

  validation {
    condition     = length(var.admin_arns) > 0
    error_message = "Name one at least, or nobody gets in."
  }
}

variable "log_retention_days" {
  description = "Days that the control plane's logs are kept."
  type        = number
  default     = 90
}

variable "addons" {
  description = "Managed add-ons beside those that are always there; version null: what EKS has for this Kubernetes."
  type = map(object({
    version       = optional(string)
    configuration = optional(string)
  }))
  default = { "metrics-server" = {} }
}

variable "addon_versions" {
  description = "Versions of the add-ons that are always there, by name; the others get what EKS has for this Kubernetes."
  type        = map(string)
  default     = {}
}
