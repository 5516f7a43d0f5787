output "queue_name" {
  description = "settings.interruptionQueue of Karpenter's chart."
  value       = aws_sqs_queue.interruption.name
}

output "instance_profile" {
  description = "spec.instanceProfile of the EC2NodeClass."
  value       = aws_iam_instance_profile.node.name
}

output "controller_role_arn" {
  description = "Role of Karpenter; the association gives it to its pods."
  value       = aws_iam_role.controller.arn
}
