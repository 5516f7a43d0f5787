# AWS says what an instance has: no table here grows old.
data "aws_ec2_instance_type" "this" {
  for_each = toset(var.instance_types)

  instance_type = each.key
}

locals {
  types = values(data.aws_ec2_instance_type.this)

  # As many as the poorest type has; 0 where one has none.
  efa_interfaces = var.efa && var.gpu ? min([for type in local.types : type.efa_supported ? coalesce(type.efa_maximum_interfaces, 1) : 0]...) : 0
  instance_store = alltrue([for type in local.types : type.instance_storage_supported])

  # The node's own agent makes one volume of the local disks and puts pods' scratch space and images on it.
  user_data = <<-EOT
    MIME-Version: 1.0
    Content-Type: multipart/mixed; boundary="node"

    --node
    Content-Type: application/node.eks.aws

    ---
    apiVersion: node.eks.aws/v1alpha1
    kind: NodeConfig
    spec:
      instance:
        localStorage:
          strategy: RAID0

    --node--
  EOT

  labels = merge(
    { "kubealign/pool" = var.name },
    # Karpenter's word for it, so that a step's `spot` and a selector mean the same on its nodes and on these.
    { "karpenter.sh/capacity-type" = var.spot ? "spot" : "on-demand" },
    # The second is what the device plugin's and the exporter's charts select by.
    var.gpu ? { "kubealign/gpu" = "true", "nvidia.com/gpu.present" = "true" } : {},
    local.efa_interfaces > 0 ? { "vpc.amazonaws.com/efa.present" = "true" } : {},
    var.labels,
  )
}

# EFA wants a rule for the group itself in both directions; an address range does not count.
resource "aws_security_group" "efa" {
  count = local.efa_interfaces > 0 ? 1 : 0

  name        = "${var.cluster_name}-${var.name}-efa"
  description = "EFA between the nodes of the pool ${var.name}"
  vpc_id      = var.vpc_id

  tags = { Name = "${var.cluster_name}-${var.name}-efa" }
}

resource "aws_vpc_security_group_ingress_rule" "efa" {
  count = local.efa_interfaces > 0 ? 1 : 0

  security_group_id            = aws_security_group.efa[0].id
  referenced_security_group_id = aws_security_group.efa[0].id
  ip_protocol                  = "-1"
  description                  = "EFA between the nodes"
}

resource "aws_vpc_security_group_egress_rule" "efa" {
  count = local.efa_interfaces > 0 ? 1 : 0

  security_group_id            = aws_security_group.efa[0].id
  referenced_security_group_id = aws_security_group.efa[0].id
  ip_protocol                  = "-1"
  description                  = "EFA between the nodes"
}

resource "aws_placement_group" "this" {
  count = local.efa_interfaces > 0 ? 1 : 0

  name     = "${var.cluster_name}-${var.name}"
  strategy = "cluster"
}

resource "aws_launch_template" "this" {
  name                   = "${var.cluster_name}-${var.name}"
  update_default_version = true
  user_data              = local.instance_store ? base64encode(local.user_data) : null
  # With interfaces of our own, each names its groups itself.
  vpc_security_group_ids = local.efa_interfaces > 0 ? null : [var.cluster_security_group_id]

  # One hop: a pod does not reach it, so it cannot take the node's role.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = var.disk_gib
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "network_interfaces" {
    for_each = range(local.efa_interfaces)

    content {
      network_card_index = network_interfaces.value
      device_index       = network_interfaces.value == 0 ? 0 : 1
      # The first carries the node's and the pods' addresses too; the others would only use addresses up.
      interface_type        = network_interfaces.value == 0 ? "efa" : "efa-only"
      delete_on_termination = true
      security_groups       = [var.cluster_security_group_id, aws_security_group.efa[0].id]
    }
  }

  dynamic "placement" {
    for_each = aws_placement_group.this

    content {
      group_name = placement.value.name
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${var.cluster_name}-${var.name}" }
  }

  lifecycle {
    precondition {
      condition     = !var.gpu || alltrue([for type in local.types : length(type.gpus) > 0])
      error_message = "Pool ${var.name}: not every one of ${join(", ", var.instance_types)} has a GPU."
    }

    precondition {
      condition     = local.efa_interfaces == 0 || length(var.subnet_ids) == 1
      error_message = "Pool ${var.name} has EFA, which does not cross zones: give it one subnet, or efa = false."
    }
  }
}

resource "aws_eks_node_group" "this" {
  cluster_name    = var.cluster_name
  node_group_name = var.name
  node_role_arn   = var.node_role_arn
  subnet_ids      = var.subnet_ids
  ami_type        = var.gpu ? "AL2023_x86_64_NVIDIA" : "AL2023_x86_64_STANDARD"
  capacity_type   = var.spot ? "SPOT" : "ON_DEMAND"
  instance_types  = var.instance_types
  labels          = local.labels

  launch_template {
    id      = aws_launch_template.this.id
    version = aws_launch_template.this.latest_version
  }

  scaling_config {
    min_size     = var.size.min
    desired_size = var.size.desired
    max_size     = var.size.max
  }

  # Only what asks for a GPU lands on one. Jobs of kubealign tolerate this.
  dynamic "taint" {
    for_each = var.gpu ? ["nvidia.com/gpu"] : []

    content {
      key    = taint.value
      value  = "present"
      effect = "NO_SCHEDULE"
    }
  }

  update_config {
    max_unavailable = 1
  }

  # A node whose GPU fails is replaced. The monitoring agent that finds it is an add-on: eks-node-monitoring-agent.
  node_repair_config {
    enabled = var.gpu
  }
}
