output "service_accounts" {
  description = "Service account of each step, and of the launcher. The chart makes them."
  value       = local.service_accounts
}

output "namespace" {
  description = "Namespace that the associations name."
  value       = var.namespace
}

output "role_arns" {
  description = "Role of each step, and of the launcher."
  value       = { for who, role in aws_iam_role.this : who => role.arn }
}
