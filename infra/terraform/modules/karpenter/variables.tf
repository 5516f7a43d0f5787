variable "cluster_name" {
  description = "EKS cluster for which Karpenter makes nodes."
  type        = string
}

variable "cluster_arn" {
  description = "ARN of the cluster."
  type        = string
}

variable "cluster_security_group_id" {
  description = "Security group of the cluster's nodes; gets the tag by which Karpenter finds it."
  type        = string
}

variable "namespace" {
  description = "Namespace of Karpenter."
  type        = string
  default     = "kube-system"
}

variable "service_account" {
  description = "Service account of Karpenter."
  type        = string
  default     = "karpenter"
}
