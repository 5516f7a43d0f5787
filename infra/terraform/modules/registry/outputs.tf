output "repository_urls" {
  description = "Repository of each image."
  value       = { for image, repository in aws_ecr_repository.this : image => repository.repository_url }
}

output "image_prefix" {
  description = "PREFIX for `docker buildx bake`, and what stands before /{step} in KUBEALIGN_IMAGES."
  value       = trimsuffix(values(aws_ecr_repository.this)[0].repository_url, "/${keys(aws_ecr_repository.this)[0]}")
}

output "repository_arns" {
  description = "For a policy of whoever pushes."
  value       = { for image, repository in aws_ecr_repository.this : image => repository.arn }
}
