mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "us-east-2" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mocked" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:us-east-2:123456789012:key/one" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { id = "our-models", arn = "arn:aws:s3:::our-models" }
  }
  mock_resource "aws_eks_cluster" {
    defaults = {
      arn                   = "arn:aws:eks:us-east-2:123456789012:cluster/kubealign"
      certificate_authority = [{ data = "Y2E=" }]
    }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  mock_resource "aws_ecr_repository" {
    defaults = { repository_url = "123456789012.dkr.ecr.us-east-2.amazonaws.com/kubealign/annotate" }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/mocked" }
  }
  mock_resource "aws_sqs_queue" {
    defaults = { arn = "arn:aws:sqs:us-east-2:123456789012:kubealign-karpenter", url = "https://queue.invalid/kubealign-karpenter" }
  }
  mock_resource "aws_cloudwatch_event_rule" {
    defaults = { arn = "arn:aws:events:us-east-2:123456789012:rule/mocked" }
  }
  mock_data "aws_ec2_instance_type" {
    defaults = {
      efa_supported              = true
      efa_maximum_interfaces     = 32
      instance_storage_supported = true
      gpus                       = [{ count = 8, manufacturer = "NVIDIA", memory_size = 81920, name = "H100" }]
    }
  }
}

variables {
  region             = "us-east-2"
  availability_zones = ["us-east-2a", "us-east-2b", "us-east-2c"]
  bucket             = "our-models"
  root               = "team"
  admin_arns         = ["arn:aws:iam::123456789012:role/platform"]
  gpu_pools = {
    h100 = {
      instance_types = ["p5.48xlarge"]
      zone           = "us-east-2b"
      size           = { min = 0, desired = 0, max = 2 }
    }
    h100-spot = {
      instance_types = ["p5.48xlarge"]
      spot           = true
      efa            = false
      size           = { min = 0, desired = 0, max = 2 }
    }
  }
}

run "the_outputs_are_the_chart_s_values" {
  assert {
    condition     = yamldecode(output.chart_values).store == { root = "s3://our-models/team", region = "us-east-2", credentials = { kind = "podIdentity" } }
    error_message = "Where runs lie, and how pods prove who they are."
  }

  assert {
    condition     = yamldecode(output.chart_values).images == { registry = "123456789012.dkr.ecr.us-east-2.amazonaws.com", repository = "kubealign" }
    error_message = "Where images come from."
  }

  assert {
    condition     = yamldecode(output.chart_values).stages.reward_model == { service_account = "kubealign-reward-model" }
    error_message = "Each step has its own account."
  }

  assert {
    condition     = keys(yamldecode(output.chart_values).stages) == ["base_model", "evaluate", "gpu", "pmp", "ppo", "reward_model", "sample_responses", "sft"]
    error_message = "Only what runs as a job is a stage of the chart."
  }

  assert {
    condition = (toset([for text in split("---\n", output.service_accounts) : yamldecode(text).metadata.name])
    == toset([for stage, values in yamldecode(output.chart_values).stages : values.service_account if stage != "gpu"]))
    error_message = "Every account that a stage names is made."
  }
}

run "pools_lie_where_they_should" {
  assert {
    condition     = output.gpu_pools["h100"].efa_interfaces == 32 && output.gpu_pools["h100-spot"].efa_interfaces == 0
    error_message = "EFA where it is wanted."
  }

  assert {
    condition = yamldecode(output.chart_values).stages.gpu.node_selector == {
      for label, value in output.gpu_pools["h100"].labels : label => value if contains(["kubealign/gpu", "karpenter.sh/capacity-type"], label)
    }
    error_message = "The chart selects what is on demand, by labels that the pools have."
  }

  assert {
    condition     = output.karpenter == null
    error_message = "Karpenter is an option."
  }
}

run "karpenter_takes_the_pools_place" {
  variables {
    karpenter = true
    gpu_pools = {}
  }

  assert {
    condition     = output.karpenter == { cluster_name = "kubealign", interruption_queue = "kubealign-karpenter", instance_profile = "kubealign-karpenter-node" }
    error_message = "The names that infra/gitops/karpenter uses."
  }
}

run "a_zone_outside_the_network_is_refused" {
  command = plan

  variables {
    gpu_pools = {
      h100 = { instance_types = ["p5.48xlarge"], zone = "us-east-2z", size = { min = 0, desired = 0, max = 2 } }
    }
  }

  expect_failures = [var.gpu_pools]
}
