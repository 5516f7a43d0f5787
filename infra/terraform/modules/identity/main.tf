locals {
  service_accounts = { for who in keys(var.documents) : who => "kubealign-${replace(who, "_", "-")}" }
}

resource "aws_iam_role" "this" {
  for_each = local.service_accounts

  name        = "${var.cluster_name}-${each.value}"
  description = "The store, for pods of ${var.namespace}/${each.value}"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      # EKS sends these along: whoever may make associations in another cluster cannot lend the role out there.
      Condition = {
        StringEquals = {
          "aws:RequestTag/eks-cluster-arn"            = var.cluster_arn
          "aws:RequestTag/kubernetes-namespace"       = var.namespace
          "aws:RequestTag/kubernetes-service-account" = each.value
        }
      }
    }]
  })
}

resource "aws_iam_role_policy" "store" {
  for_each = var.documents

  name   = "store"
  role   = aws_iam_role.this[each.key].id
  policy = each.value
}

resource "aws_eks_pod_identity_association" "this" {
  for_each = local.service_accounts

  cluster_name    = var.cluster_name
  namespace       = var.namespace
  service_account = each.value
  role_arn        = aws_iam_role.this[each.key].arn
}
