mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = { id = "our-models", arn = "arn:aws:s3:::our-models" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-central-1:123456789012:key/one" }
  }
}

variables {
  bucket = "our-models"
  root   = "team"
}

run "nothing_is_public_and_everything_is_kept_and_encrypted" {
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls,
      aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls,
      aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "All four blocks on public access."
  }

  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "Versions are kept."
  }

  assert {
    condition = alltrue([for rule in aws_s3_bucket_server_side_encryption_configuration.this.rule :
      rule.bucket_key_enabled && rule.apply_server_side_encryption_by_default[0].sse_algorithm == "aws:kms"
    ])
    error_message = "KMS with a bucket key."
  }

  assert {
    condition     = aws_kms_key.this[0].enable_key_rotation
    error_message = "The key rotates."
  }

  assert {
    condition     = output.uri == "s3://our-models/team"
    error_message = "The root as the command line takes it."
  }

  assert {
    condition     = aws_s3_bucket.this.force_destroy == false
    error_message = "A bucket with objects is not destroyed by default."
  }
}

run "plain_and_old_connections_are_denied" {
  assert {
    condition = toset([for s in jsondecode(aws_s3_bucket_policy.this.policy).Statement : s.Sid if s.Effect == "Deny" && s.Principal == "*" && s.Action == "s3:*"
    && toset(s.Resource) == toset(["arn:aws:s3:::our-models", "arn:aws:s3:::our-models/*"])]) == toset(["DenyWithoutTls", "DenyOldTls"])
    error_message = "Both denials cover the bucket and its objects, for everyone."
  }

  assert {
    condition     = jsondecode(aws_s3_bucket_policy.this.policy).Statement[0].Condition.Bool["aws:SecureTransport"] == "false"
    error_message = "Denied is what comes without TLS."
  }
}

run "deleted_checkpoints_are_forgotten_soon_and_models_late" {
  assert {
    condition = one([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.noncurrent_version_expiration[0].noncurrent_days
    if rule.id == "runs-forget-what-was-deleted" && rule.filter[0].prefix == "team/runs/"]) == 3
    error_message = "Versions under runs/ end after three days."
  }

  assert {
    condition = one([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.noncurrent_version_expiration[0].noncurrent_days
    if rule.id == "models-forget-what-was-deleted" && rule.filter[0].prefix == "team/models/"]) == 90
    error_message = "Versions under models/ end after ninety days."
  }

  assert {
    condition     = length([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule if length(rule.abort_incomplete_multipart_upload) == 1]) == 1
    error_message = "Unfinished uploads are aborted."
  }

  assert {
    condition     = length([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule if rule.id == "runs-end"]) == 0
    error_message = "No run is deleted by default."
  }
}

run "runs_end_when_asked_for" {
  variables {
    run_expiry_days = 365
  }

  assert {
    condition = one([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.expiration[0].days
    if rule.id == "runs-end"]) == 365
    error_message = "Runs end after a year."
  }
}

run "s3_s_own_key_is_enough_without_kms" {
  variables {
    kms  = false
    root = ""
  }

  assert {
    condition = alltrue([for rule in aws_s3_bucket_server_side_encryption_configuration.this.rule :
      rule.apply_server_side_encryption_by_default[0].sse_algorithm == "AES256"
    ])
    error_message = "Objects are encrypted all the same."
  }

  assert {
    condition     = length(aws_kms_key.this) == 0 && output.kms_key_arn == null && output.uri == "s3://our-models"
    error_message = "There is no key to name."
  }
}

run "runs_that_end_before_they_grow_cold_are_refused" {
  command = plan

  variables {
    run_expiry_days = 10
  }

  expect_failures = [var.run_expiry_days]
}

run "a_bucket_with_dots_is_refused" {
  command = plan

  variables {
    bucket = "our.models"
  }

  expect_failures = [var.bucket]
}
