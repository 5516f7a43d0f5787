variable "region" {
  description = "AWS region."
  type        = string
}

variable "name" {
  description = "Name of the cluster and of everything around it."
  type        = string
  default     = "kubealign"
}

variable "bucket" {
  description = "Name of the bucket to make, unique among all of AWS."
  type        = string
}

variable "root" {
  description = "Folder in the bucket under which runs and models lie; empty for the bucket itself."
  type        = string
  default     = ""
}

variable "availability_zones" {
  description = "Zones of the network, two at least; among them those of the GPU pools."
  type        = list(string)
}

variable "cidr" {
  description = "Addresses of the VPC."
  type        = string
  default     = "10.0.0.0/16"
}

variable "nat" {
  description = "Way out of the private subnets: single, zonal or none."
  type        = string
  default     = "single"
}

variable "interface_endpoints" {
  description = "AWS services reached without the internet; needed where nat is none."
  type        = set(string)
  default     = []
}

variable "kubernetes_version" {
  description = "Minor version of Kubernetes, one in standard support."
  type        = string
  default     = "1.34"
}

variable "public_access_cidrs" {
  description = "Networks that may reach the API server from the internet; none: from the VPC alone."
  type        = list(string)
  default     = []
}

variable "admin_arns" {
  description = "IAM roles or users that administer the cluster; yours among them."
  type        = set(string)
}

variable "namespace" {
  description = "Namespace of launcher and jobs."
  type        = string
  default     = "training"
}

variable "cpu_pool" {
  description = "Nodes for operators, launchers and data preparation."
  type = object({
    instance_types = optional(list(string), ["m7i.2xlarge"])
    size           = optional(object({ min = number, desired = number, max = number }), { min = 2, desired = 2, max = 6 })
    disk_gib       = optional(number, 200)
  })
  default = {}
}

variable "gpu_pools" {
  description = "GPU pools by name; zone null: all zones, which EFA does not cross."
  type = map(object({
    instance_types = list(string)
    size           = object({ min = number, desired = number, max = number })
    spot           = optional(bool, false)
    efa            = optional(bool, true)
    zone           = optional(string)
    disk_gib       = optional(number, 200)
    labels         = optional(map(string), {})
  }))
  default = {}

  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : pool.zone == null || contains(var.availability_zones, coalesce(pool.zone, "-"))])
    error_message = "A pool's zone must be one of availability_zones."
  }

  validation {
    condition     = !contains(keys(var.gpu_pools), "cpu")
    error_message = "The name cpu is taken."
  }
}

variable "karpenter" {
  description = "Make what Karpenter needs of AWS; it then makes GPU nodes as jobs ask for them, and gpu_pools may be empty."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of everything, for the bill."
  type        = map(string)
  default     = {}
}
