output "bucket" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.this.id
}

output "bucket_arn" {
  description = "ARN of the bucket."
  value       = aws_s3_bucket.this.arn
}

output "kms_key_arn" {
  description = "Key of the objects; null where S3's own is used."
  value       = var.kms ? aws_kms_key.this[0].arn : null
}

output "root" {
  description = "Folder in the bucket that is the store's root."
  value       = var.root
}

output "uri" {
  description = "The store's root as `kubealign run --root` takes it."
  value       = "s3://${aws_s3_bucket.this.id}${var.root == "" ? "" : "/${var.root}"}"
}
