variables {
  bucket_arn = "arn:aws:s3:::our-models"
}

run "a_step_writes_only_in_its_own_folder" {
  assert {
    condition = [for s in jsondecode(output.documents["sft"]).Statement : s.Resource if s.Sid == "Write"][0] == [
      for name in ["result.json", "metrics.jsonl", "checkpoints", "checkpoints/*", "output", "output/*"] :
      "arn:aws:s3:::our-models/runs/*/sft/${name}"
    ]
    error_message = "sft writes its results, not its spec, and nobody else's."
  }
}

run "no_statement_names_a_bare_wildcard" {
  assert {
    condition = alltrue(flatten([for document in output.documents : [for s in jsondecode(document).Statement :
      !contains(s.Resource, "*") && !contains(s.Resource, "arn:aws:s3:::our-models/*") && !anytrue([for action in s.Action : strcontains(action, "*")])
    ]]))
    error_message = "Every action and every resource is named."
  }
}

run "raw_data_is_written_by_nobody" {
  assert {
    condition = alltrue(flatten([for document in output.documents : [for s in jsondecode(document).Statement :
      !anytrue([for resource in s.Resource : strcontains(resource, "/raw")]) if contains(["Write", "Delete"], s.Sid)
    ]]))
    error_message = "What people bring stays as they brought it."
  }
}

run "only_publish_writes_models" {
  assert {
    condition = [for who, document in output.documents : who if anytrue(flatten([for s in jsondecode(document).Statement :
      [for resource in s.Resource : strcontains(resource, "our-models/models/")] if s.Sid == "Write"
    ]))] == ["publish"]
    error_message = "Models are promoted by one step."
  }
}

run "a_root_is_part_of_every_pattern" {
  variables {
    root = "team"
  }

  assert {
    condition = alltrue(flatten([for document in output.documents : [for s in jsondecode(document).Statement :
      [for resource in s.Resource : startswith(resource, "arn:aws:s3:::our-models/team/")] if s.Sid == "Write" || s.Sid == "Delete"
    ]]))
    error_message = "Another team's folder in the same bucket is out of reach."
  }

  assert {
    condition     = [for s in jsondecode(output.documents["sft"]).Statement : s.Condition.StringLike["s3:prefix"] if s.Sid == "List"][0] == ["team/runs", "team/runs/*", "team/datasets", "team/datasets/*"]
    error_message = "Listing is for what is read."
  }
}

run "the_key_serves_this_bucket_alone" {
  variables {
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/one"
  }

  assert {
    condition = alltrue([for document in output.documents : [for s in jsondecode(document).Statement : s.Condition.StringLike["kms:EncryptionContext:aws:s3:arn"]
    if s.Resource == ["arn:aws:kms:eu-central-1:123456789012:key/one"]][0] == ["arn:aws:s3:::our-models", "arn:aws:s3:::our-models/*"]])
    error_message = "The key decrypts nothing of other buckets."
  }
}

run "every_document_fits_into_a_role" {
  variables {
    root        = "a-rather-long-team-name/alignment"
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
  }

  assert {
    condition     = alltrue([for document in output.documents : length(document) <= 10240])
    error_message = "IAM takes 10,240 characters of inline policies a role."
  }
}
