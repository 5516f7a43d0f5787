mock_provider "aws" {
  mock_resource "aws_ecr_repository" {
    defaults = { repository_url = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/kubealign/annotate" }
  }
}

run "tags_never_move_and_pushes_are_scanned" {
  assert {
    condition     = length(aws_ecr_repository.this) == 11 && aws_ecr_repository.this["reward-model"].name == "kubealign/reward-model"
    error_message = "One repository for each image, in the folder."
  }

  assert {
    condition     = alltrue([for r in aws_ecr_repository.this : r.image_tag_mutability == "IMMUTABLE" && r.image_scanning_configuration[0].scan_on_push && !r.force_delete])
    error_message = "Immutable, scanned, and not deleted with images in it."
  }

  assert {
    condition     = output.image_prefix == "123456789012.dkr.ecr.eu-central-1.amazonaws.com/kubealign"
    error_message = "The prefix is the repository without the image."
  }
}

run "old_images_go" {
  variables {
    keep = 5
  }

  assert {
    condition = alltrue([for p in aws_ecr_lifecycle_policy.this :
      [for rule in jsondecode(p.policy).rules : [rule.selection.tagStatus, rule.selection.countNumber]] == [["untagged", 7], ["tagged", 5]]
    ])
    error_message = "Untagged ones after a week, tagged ones beyond five."
  }
}

run "keeping_only_what_runs_is_refused" {
  command = plan

  variables {
    keep = 1
  }

  expect_failures = [var.keep]
}
