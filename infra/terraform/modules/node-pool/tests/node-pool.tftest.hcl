mock_provider "aws" {
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
}

variables {
  name                      = "gpu"
  cluster_name              = "train"
  cluster_security_group_id = "sg-cluster"
  vpc_id                    = "vpc-1"
  node_role_arn             = "arn:aws:iam::123456789012:role/train-node"
  subnet_ids                = ["subnet-a"]
  instance_types            = ["p4d.24xlarge"]
  gpu                       = true
  size                      = { min = 0, desired = 0, max = 2 }
}

override_data {
  target = data.aws_ec2_instance_type.this
  values = {
    efa_supported              = true
    efa_maximum_interfaces     = 4
    instance_storage_supported = true
    gpus                       = [{ count = 8, manufacturer = "NVIDIA", memory_size = 40960, name = "A100" }]
  }
}

run "a_gpu_pool_has_image_taint_and_labels" {
  assert {
    condition     = aws_eks_node_group.this.ami_type == "AL2023_x86_64_NVIDIA" && aws_eks_node_group.this.capacity_type == "ON_DEMAND"
    error_message = "The image with the drivers, on demand."
  }

  assert {
    condition     = [for t in aws_eks_node_group.this.taint : "${t.key}:${t.effect}"] == ["nvidia.com/gpu:NO_SCHEDULE"]
    error_message = "Nothing lands on a GPU node by chance."
  }

  assert {
    condition     = aws_eks_node_group.this.labels["nvidia.com/gpu.present"] == "true" && aws_eks_node_group.this.labels["kubealign/pool"] == "gpu"
    error_message = "The labels that charts select by."
  }

  assert {
    condition     = aws_eks_node_group.this.node_repair_config[0].enabled
    error_message = "A node with a broken GPU is replaced."
  }
}

run "metadata_is_one_hop_away_and_disks_are_encrypted" {
  assert {
    condition = (aws_launch_template.this.metadata_options[0].http_tokens == "required"
    && aws_launch_template.this.metadata_options[0].http_put_response_hop_limit == 1)
    error_message = "IMDSv2 alone, out of pods' reach."
  }

  assert {
    condition     = aws_launch_template.this.block_device_mappings[0].ebs[0].encrypted == "true"
    error_message = "The root disk is encrypted."
  }
}

run "efa_takes_every_interface_that_the_instance_has" {
  assert {
    condition     = [for i in aws_launch_template.this.network_interfaces : "${i.network_card_index}/${i.device_index}/${i.interface_type}"] == ["0/0/efa", "1/1/efa-only", "2/1/efa-only", "3/1/efa-only"]
    error_message = "One a card; only the first carries addresses."
  }

  assert {
    condition     = alltrue([for i in aws_launch_template.this.network_interfaces : contains(i.security_groups, "sg-cluster") && length(i.security_groups) == 2])
    error_message = "Each is in the cluster's group and in EFA's."
  }

  assert {
    condition = (aws_vpc_security_group_egress_rule.efa[0].referenced_security_group_id == aws_security_group.efa[0].id
    && aws_vpc_security_group_ingress_rule.efa[0].referenced_security_group_id == aws_security_group.efa[0].id)
    error_message = "EFA wants rules for the group itself."
  }

  assert {
    condition     = aws_placement_group.this[0].strategy == "cluster" && aws_launch_template.this.placement[0].group_name == aws_placement_group.this[0].name && output.efa_interfaces == 4
    error_message = "The nodes stand close together."
  }
}

run "local_disks_become_scratch_space" {
  assert {
    condition     = strcontains(base64decode(aws_launch_template.this.user_data), "strategy: RAID0") && startswith(base64decode(aws_launch_template.this.user_data), "MIME-Version: 1.0\n")
    error_message = "One volume of all disks, in the form that the node's agent reads."
  }
}

run "efa_across_zones_is_refused" {
  command = plan

  variables {
    subnet_ids = ["subnet-a", "subnet-b"]
  }

  expect_failures = [aws_launch_template.this]
}

run "without_efa_a_pool_may_span_zones" {
  variables {
    subnet_ids = ["subnet-a", "subnet-b"]
    efa        = false
    spot       = true
  }

  assert {
    condition     = length(aws_launch_template.this.network_interfaces) == 0 && toset(aws_launch_template.this.vpc_security_group_ids) == toset(["sg-cluster"])
    error_message = "Ordinary interfaces in the cluster's group."
  }

  assert {
    condition     = aws_eks_node_group.this.capacity_type == "SPOT" && length(aws_placement_group.this) == 0 && output.labels["karpenter.sh/capacity-type"] == "spot"
    error_message = "Spot, wherever there is room."
  }
}

run "an_instance_without_efa_or_disks_gets_neither" {
  override_data {
    target = data.aws_ec2_instance_type.this
    values = {
      efa_supported              = false
      efa_maximum_interfaces     = 0
      instance_storage_supported = false
      gpus                       = [{ count = 1, manufacturer = "NVIDIA", memory_size = 24576, name = "L4" }]
    }
  }

  assert {
    condition     = output.efa_interfaces == 0 && !output.instance_store && aws_launch_template.this.user_data == null
    error_message = "Nothing is set up that is not there."
  }
}

run "a_gpu_pool_without_gpus_is_refused" {
  command = plan

  override_data {
    target = data.aws_ec2_instance_type.this
    values = { efa_supported = false, instance_storage_supported = false, gpus = [] }
  }

  expect_failures = [aws_launch_template.this]
}

run "a_cpu_pool_is_plain" {
  variables {
    name           = "cpu"
    gpu            = false
    instance_types = ["m7i.2xlarge"]
    subnet_ids     = ["subnet-a", "subnet-b"]
  }

  assert {
    condition     = aws_eks_node_group.this.ami_type == "AL2023_x86_64_STANDARD" && length(aws_eks_node_group.this.taint) == 0 && output.efa_interfaces == 0
    error_message = "No drivers, no taint, no EFA."
  }
}

run "sizes_out_of_order_are_refused" {
  command = plan

  variables {
    size = { min = 2, desired = 1, max = 3 }
  }

  expect_failures = [var.size]
}
