output "documents" {
  description = "IAM policy of each step and of the launcher, as JSON."
  value = { for who, statements in local.statements : who => jsonencode({
    Version   = "2012-10-17"
    Statement = [for s in statements : { for key, value in s : key => value if key != "Condition" || length(value) > 0 }]
  }) }
}
