mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mocked" }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/mocked" }
  }
  mock_resource "aws_sqs_queue" {
    defaults = { arn = "arn:aws:sqs:eu-central-1:123456789012:train-karpenter", url = "https://queue.invalid/train-karpenter" }
  }
  mock_resource "aws_cloudwatch_event_rule" {
    defaults = { arn = "arn:aws:events:eu-central-1:123456789012:rule/mocked" }
  }
}

variables {
  cluster_name              = "train"
  cluster_arn               = "arn:aws:eks:eu-central-1:123456789012:cluster/train"
  cluster_security_group_id = "sg-cluster"
}

run "bare_wildcards_stand_only_where_the_action_has_no_resource" {
  assert {
    condition = toset(flatten([for s in jsondecode(aws_iam_role_policy.controller.policy).Statement :
      [for action in s.Action : split(":", action)[0] == "ec2" ? substr(action, 0, 12) : action] if contains(s.Resource, "*")
    ])) == toset(["ec2:Describe", "pricing:GetProducts"])
    error_message = "Describing and prices; nothing else for all resources."
  }
}

run "only_its_own_instances_are_made_and_deleted" {
  assert {
    condition = alltrue([for s in jsondecode(aws_iam_role_policy.controller.policy).Statement :
      s.Condition.StringEquals["aws:ResourceTag/kubernetes.io/cluster/train"] == "owned" if contains(s.Action, "ec2:TerminateInstances")
    ])
    error_message = "Instances of others are out of reach."
  }

  assert {
    condition = alltrue([for s in jsondecode(aws_iam_role_policy.controller.policy).Statement :
    s.Condition.StringEquals["aws:RequestTag/kubernetes.io/cluster/train"] == "owned" if contains(s.Resource, "arn:aws:ec2:eu-central-1:123456789012:volume/*")])
    error_message = "What it makes is tagged as its own."
  }

  assert {
    condition     = length([for s in jsondecode(aws_iam_role_policy.controller.policy).Statement : s if anytrue([for a in s.Action : contains(["iam:CreateInstanceProfile", "iam:AddRoleToInstanceProfile"], a)])]) == 0
    error_message = "It makes no profiles: Terraform has made one."
  }

  assert {
    condition     = length(aws_iam_role_policy.controller.policy) <= 10240
    error_message = "IAM takes 10,240 characters of inline policies a role."
  }
}

run "warnings_reach_the_queue_from_our_rules_alone" {
  assert {
    condition     = toset([for rule in aws_cloudwatch_event_rule.interruption : jsondecode(rule.event_pattern)["detail-type"][0]]) == toset(["AWS Health Event", "EC2 Spot Instance Interruption Warning", "EC2 Instance Rebalance Recommendation", "EC2 Instance State-change Notification"])
    error_message = "The four kinds that Karpenter understands."
  }

  assert {
    condition     = alltrue([for target in aws_cloudwatch_event_target.interruption : target.arn == aws_sqs_queue.interruption.arn])
    error_message = "All go into the queue."
  }

  assert {
    condition     = toset(jsondecode(aws_sqs_queue_policy.interruption.policy).Statement[0].Condition.ArnEquals["aws:SourceArn"]) == toset([for rule in aws_cloudwatch_event_rule.interruption : rule.arn])
    error_message = "Only these rules write to it."
  }

  assert {
    condition     = jsondecode(aws_sqs_queue_policy.interruption.policy).Statement[1].Effect == "Deny" && aws_sqs_queue.interruption.sqs_managed_sse_enabled
    error_message = "By TLS, and encrypted."
  }
}

run "its_nodes_may_join" {
  assert {
    condition     = aws_eks_access_entry.node.type == "EC2_LINUX" && aws_eks_access_entry.node.principal_arn == aws_iam_role.node.arn
    error_message = "The role of its nodes is known to the cluster."
  }

  assert {
    condition     = aws_ec2_tag.security_group.value == "train" && output.instance_profile == "train-karpenter-node" && output.queue_name == "train-karpenter"
    error_message = "The names that its objects use."
  }
}
