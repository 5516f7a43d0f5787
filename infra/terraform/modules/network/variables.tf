variable "name" {
  description = "Name of the VPC, and prefix of what is in it."
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC. The network is cut into sixteen: private subnets from the first on, small public ones in the last."
  type        = string
  default     = "10.0.0.0/16"

  validation {
    condition     = can(cidrsubnet(var.cidr, 8, 255)) && try(tonumber(split("/", var.cidr)[1]), 0) <= 20
    error_message = "Give an IPv4 network of /20 or larger, such as 10.0.0.0/16: every pod takes an address."
  }
}

variable "availability_zones" {
  description = "Zones with a private and a public subnet each. EKS wants two at least; name those that offer your GPUs."
  type        = list(string)

  validation {
    condition     = length(var.availability_zones) >= 2 && length(var.availability_zones) <= 8
    error_message = "Give two to eight availability zones."
  }

  validation {
    condition     = length(distinct(var.availability_zones)) == length(var.availability_zones)
    error_message = "Name every availability zone once."
  }
}

variable "nat" {
  description = "Way out of the private subnets: single (one gateway, cheap), zonal (one a zone), none (with interface_endpoints)."
  type        = string
  default     = "single"

  validation {
    condition     = contains(["single", "zonal", "none"], var.nat)
    error_message = "nat is single, zonal or none."
  }
}

variable "interface_endpoints" {
  description = "AWS services reached without the internet, such as ecr.api, ecr.dkr, sts, ec2, eks, eks-auth, logs. Each costs by the hour and zone."
  type        = set(string)
  default     = []
}
