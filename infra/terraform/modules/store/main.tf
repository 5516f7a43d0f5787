locals {
  prefix = var.root == "" ? "" : "${var.root}/"
}

resource "aws_s3_bucket" "this" {
  bucket        = var.bucket
  force_destroy = var.force_destroy
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket = aws_s3_bucket.this.id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

# No ACLs at all: access is what policies say.
resource "aws_s3_bucket_ownership_controls" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_versioning" "this" {
  bucket = aws_s3_bucket.this.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_kms_key" "this" {
  count = var.kms ? 1 : 0

  description             = "Objects of the bucket ${var.bucket}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

resource "aws_kms_alias" "this" {
  count = var.kms ? 1 : 0

  name          = "alias/${var.bucket}"
  target_key_id = aws_kms_key.this[0].key_id
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    # One data key for many objects: a checkpoint of thousands of parts would else be as many calls to KMS.
    bucket_key_enabled = var.kms

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms ? "aws:kms" : "AES256"
      kms_master_key_id = var.kms ? aws_kms_key.this[0].arn : null
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  bucket = aws_s3_bucket.this.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "DenyWithoutTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        Sid       = "DenyOldTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]
        Condition = { NumericLessThan = { "s3:TlsVersion" = "1.2" } }
      },
    ]
  })

  # S3 refuses a policy while it changes the block on public ones.
  depends_on = [aws_s3_bucket_public_access_block.this]
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  # Of a killed upload nothing is seen but the bill.
  rule {
    id     = "abort-unfinished-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 3
    }
  }

  # A filter cannot name runs/<any>/<any>/checkpoints/. It need not: steps delete their old checkpoints themselves, which
  # makes of each a version that is no longer current, and those are what grows.
  rule {
    id     = "runs-forget-what-was-deleted"
    status = "Enabled"

    filter {
      prefix = "${local.prefix}runs/"
    }

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }

    # S3 takes either this or an age in one rule.
    dynamic "expiration" {
      for_each = var.run_expiry_days == 0 ? [1] : []

      content {
        expired_object_delete_marker = true
      }
    }
  }

  dynamic "rule" {
    for_each = var.run_cold_days > 0 ? [1] : []

    content {
      id     = "runs-grow-cold"
      status = "Enabled"

      filter {
        prefix = "${local.prefix}runs/"
      }

      transition {
        days          = var.run_cold_days
        storage_class = "INTELLIGENT_TIERING"
      }
    }
  }

  dynamic "rule" {
    for_each = var.run_expiry_days > 0 ? [1] : []

    content {
      id     = "runs-end"
      status = "Enabled"

      filter {
        prefix = "${local.prefix}runs/"
      }

      expiration {
        days = var.run_expiry_days
      }
    }
  }

  dynamic "rule" {
    for_each = toset(["datasets", "models"])

    content {
      id     = "${rule.value}-forget-what-was-deleted"
      status = "Enabled"

      filter {
        prefix = "${local.prefix}${rule.value}/"
      }

      noncurrent_version_expiration {
        noncurrent_days = var.model_noncurrent_days
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}
