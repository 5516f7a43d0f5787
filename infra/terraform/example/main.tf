provider "aws" {
  region = var.region

  default_tags {
    tags = merge({ "kubealign/cluster" = var.name }, var.tags)
  }
}

module "network" {
  source = "../modules/network"

  name                = var.name
  cidr                = var.cidr
  availability_zones  = var.availability_zones
  nat                 = var.nat
  interface_endpoints = var.interface_endpoints
}

module "cluster" {
  source = "../modules/cluster"

  name                = var.name
  kubernetes_version  = var.kubernetes_version
  subnet_ids          = module.network.private_subnet_ids
  public_access_cidrs = var.public_access_cidrs
  admin_arns          = var.admin_arns
  addons = merge(
    { "metrics-server" = {} },
    # Finds broken GPUs, which node repair then replaces.
    length(var.gpu_pools) > 0 || var.karpenter ? { "eks-node-monitoring-agent" = {} } : {},
  )
}

module "cpu_pool" {
  source = "../modules/node-pool"

  name                      = "cpu"
  cluster_name              = module.cluster.name
  cluster_security_group_id = module.cluster.security_group_id
  vpc_id                    = module.network.vpc_id
  node_role_arn             = module.cluster.node_role_arn
  subnet_ids                = module.network.private_subnet_ids
  instance_types            = var.cpu_pool.instance_types
  size                      = var.cpu_pool.size
  disk_gib                  = var.cpu_pool.disk_gib
}

module "gpu_pool" {
  source   = "../modules/node-pool"
  for_each = var.gpu_pools

  name                      = each.key
  cluster_name              = module.cluster.name
  cluster_security_group_id = module.cluster.security_group_id
  vpc_id                    = module.network.vpc_id
  node_role_arn             = module.cluster.node_role_arn
  subnet_ids                = each.value.zone == null ? module.network.private_subnet_ids : [module.network.private_subnets_by_zone[each.value.zone]]
  instance_types            = each.value.instance_types
  size                      = each.value.size
  spot                      = each.value.spot
  efa                       = each.value.efa
  disk_gib                  = each.value.disk_gib
  labels                    = each.value.labels
  gpu                       = true
}

module "store" {
  source = "../modules/store"

  bucket = var.bucket
  root   = var.root
}

module "policies" {
  source = "../modules/policies"

  bucket_arn  = module.store.bucket_arn
  kms_key_arn = module.store.kms_key_arn
  root        = var.root
}

module "identity" {
  source = "../modules/identity"

  cluster_name = module.cluster.name
  cluster_arn  = module.cluster.arn
  namespace    = var.namespace
  documents    = module.policies.documents
}

module "registry" {
  source = "../modules/registry"

  prefix = var.name
}

module "karpenter" {
  source = "../modules/karpenter"
  count  = var.karpenter ? 1 : 0

  cluster_name              = module.cluster.name
  cluster_arn               = module.cluster.arn
  cluster_security_group_id = module.cluster.security_group_id
}
