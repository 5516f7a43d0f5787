variable "name" {
  description = "Name of the pool."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", var.name))
    error_message = "1 to 40 lower-case letters, digits and hyphens."
  }
}

variable "cluster_name" {
  description = "EKS cluster that the nodes join."
  type        = string
}

variable "cluster_security_group_id" {
  description = "Security group of the cluster's nodes."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the cluster."
  type        = string
}

variable "node_role_arn" {
  description = "Role of the nodes."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of the nodes. A pool with EFA has one, since EFA does not cross zones."
  type        = list(string)
}

variable "instance_types" {
  description = "Types of instance. Several only for spot, and then alike in GPUs, disks and EFA."
  type        = list(string)

  validation {
    condition     = length(var.instance_types) >= 1
    error_message = "Name one at least."
  }
}

variable "spot" {
  description = "Spare capacity at a lower price, taken away at two minutes' notice: steps go on from their checkpoints."
  type        = bool
  default     = false
}

variable "gpu" {
  description = "Nodes with NVIDIA GPUs: the image with drivers, the taint, the labels."
  type        = bool
  default     = false
}

variable "efa" {
  description = "Use EFA where every instance type has it. Turn it off for pools whose jobs have one node: it binds them to one zone."
  type        = bool
  default     = true
}

variable "size" {
  description = "Number of nodes. Nothing here scales by load: change `desired`, or use Karpenter."
  type = object({
    min     = number
    desired = number
    max     = number
  })

  validation {
    condition     = 0 <= var.size.min && var.size.min <= var.size.desired && var.size.desired <= var.size.max && var.size.max >= 1
    error_message = "0 <= min <= desired <= max, and max at least 1."
  }
}

variable "disk_gib" {
  description = "Root disk in GiB: the image cache, and all scratch space where there is no instance store."
  type        = number
  default     = 200

  validation {
    condition     = var.disk_gib >= 50
    error_message = "The training image alone takes tens of GiB: 50 at least."
  }
}

variable "labels" {
  description = "Further labels of the nodes."
  type        = map(string)
  default     = {}
}
