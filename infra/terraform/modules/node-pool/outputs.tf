output "name" {
  description = "Name of the pool."
  value       = aws_eks_node_group.this.node_group_name
}

output "labels" {
  description = "Labels of its nodes, to select them by."
  value       = local.labels
}

output "efa_interfaces" {
  description = "EFA interfaces of a node: vpc.amazonaws.com/efa that a pod may ask for."
  value       = local.efa_interfaces
}

output "instance_store" {
  description = "Whether scratch space lies on local disks."
  value       = local.instance_store
}
