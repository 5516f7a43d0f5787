mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mocked" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-central-1:123456789012:key/one" }
  }
  mock_resource "aws_eks_cluster" {
    defaults = {
      arn                   = "arn:aws:eks:eu-central-1:123456789012:cluster/train"
      certificate_authority = [{ data = "Y2E=" }]
    }
  }
}

variables {
  name               = "train"
  kubernetes_version = "1.34"
  subnet_ids         = ["subnet-a", "subnet-b"]
  admin_arns         = ["arn:aws:iam::123456789012:role/platform"]
}

run "the_api_server_is_private_and_logged_and_secrets_are_encrypted" {
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_private_access && !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "Nobody reaches it from the internet by default."
  }

  assert {
    condition     = aws_eks_cluster.this.enabled_cluster_log_types == toset(["api", "audit", "authenticator", "controllerManager", "scheduler"])
    error_message = "All five logs."
  }

  assert {
    condition = (aws_eks_cluster.this.encryption_config[0].provider[0].key_arn == aws_kms_key.secrets.arn
    && aws_eks_cluster.this.encryption_config[0].resources == toset(["secrets"]) && aws_kms_key.secrets.enable_key_rotation)
    error_message = "Secrets lie under a key of our own."
  }

  assert {
    condition     = aws_eks_cluster.this.upgrade_policy[0].support_type == "STANDARD"
    error_message = "Extended support is not bought by forgetting."
  }
}

run "only_named_admins_get_in" {
  assert {
    condition = (!aws_eks_cluster.this.access_config[0].bootstrap_cluster_creator_admin_permissions
    && aws_eks_cluster.this.access_config[0].authentication_mode == "API")
    error_message = "No hidden admin, no config map."
  }

  assert {
    condition     = keys(aws_eks_access_policy_association.admin) == ["arn:aws:iam::123456789012:role/platform"]
    error_message = "The named ones."
  }
}

run "add_ons_have_roles_of_their_own_and_nodes_have_little" {
  assert {
    condition     = toset(keys(aws_eks_addon.others)) == toset(["vpc-cni", "kube-proxy", "coredns", "aws-ebs-csi-driver", "metrics-server"])
    error_message = "Network, proxy, DNS, disks, metrics."
  }

  assert {
    condition     = toset([for name, addon in aws_eks_addon.others : name if length(addon.pod_identity_association) == 1]) == toset(["vpc-cni", "aws-ebs-csi-driver"])
    error_message = "What calls AWS does it with its own role."
  }

  assert {
    condition = alltrue([for a in aws_iam_role_policy_attachment.node :
    contains(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"], basename(a.policy_arn))])
    error_message = "A node joins and pulls images; a pod that takes its role gets no more."
  }
}

run "a_public_endpoint_is_for_named_networks" {
  variables {
    public_access_cidrs = ["203.0.113.0/24"]
  }

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].public_access_cidrs == toset(["203.0.113.0/24"])
    error_message = "Public for these only."
  }
}

run "the_whole_internet_is_refused" {
  command = plan

  variables {
    public_access_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.public_access_cidrs]
}

run "a_cluster_without_admins_is_refused" {
  command = plan

  variables {
    admin_arns = []
  }

  expect_failures = [var.admin_arns]
}
