mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mocked" }
  }
}

variables {
  cluster_name = "train"
  cluster_arn  = "arn:aws:eks:eu-central-1:123456789012:cluster/train"
  documents = {
    sft          = "{\"Version\":\"2012-10-17\",\"Statement\":[]}"
    reward_model = "{\"Version\":\"2012-10-17\",\"Statement\":[]}"
    launcher     = "{\"Version\":\"2012-10-17\",\"Statement\":[]}"
  }
}

run "a_role_trusts_one_service_account_of_one_cluster" {
  assert {
    condition = jsondecode(aws_iam_role.this["reward_model"].assume_role_policy).Statement == [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = { StringEquals = {
        "aws:RequestTag/eks-cluster-arn"            = "arn:aws:eks:eu-central-1:123456789012:cluster/train"
        "aws:RequestTag/kubernetes-namespace"       = "training"
        "aws:RequestTag/kubernetes-service-account" = "kubealign-reward-model"
      } }
    }]
    error_message = "EKS alone, for these pods alone."
  }

  assert {
    condition     = alltrue([for who, a in aws_eks_pod_identity_association.this : a.namespace == "training" && a.service_account == output.service_accounts[who]])
    error_message = "The association names the account that the role trusts."
  }
}

run "the_launcher_s_account_is_the_one_of_the_manifests" {
  command = plan

  assert {
    condition     = output.service_accounts["launcher"] == "kubealign-launcher"
    error_message = "infra/kubernetes/launcher.yaml names it so."
  }
}

run "a_step_with_a_wrong_name_is_refused" {
  command = plan

  variables {
    documents = { "Reward Model" = "{}" }
  }

  expect_failures = [var.documents]
}
