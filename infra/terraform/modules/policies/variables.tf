variable "bucket_arn" {
  description = "ARN of the store's bucket."
  type        = string

  validation {
    condition     = can(regex("^arn:[a-z-]+:s3:::[a-z0-9.-]+$", var.bucket_arn))
    error_message = "An ARN of a bucket, such as arn:aws:s3:::our-models."
  }
}

variable "kms_key_arn" {
  description = "Key of the bucket's objects; null where they are encrypted with S3's own."
  type        = string
  default     = null
}

variable "root" {
  description = "Folder in the bucket under which runs/, datasets/ and models/ lie; empty for the bucket itself."
  type        = string
  default     = ""
}

variable "raw" {
  description = "Folder in the bucket with what people bring: raw data (--data-root) and annotators' results. Nobody here writes to it."
  type        = string
  default     = "raw"

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$", var.raw))
    error_message = "A relative path without a slash at either end; raw data must not be the whole bucket."
  }
}
