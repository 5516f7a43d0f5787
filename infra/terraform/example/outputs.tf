locals {
  # data_prep and annotate run beside the launcher, as it; publish starts by hand.
  jobs = setsubtract(keys(module.identity.service_accounts), ["launcher", "data_prep", "annotate", "publish"])

  registry = split("/", module.registry.image_prefix)

  chart_values = {
    images = {
      registry   = local.registry[0]
      repository = join("/", slice(local.registry, 1, length(local.registry)))
    }
    store = {
      root        = module.store.uri
      region      = var.region
      credentials = { kind = "podIdentity" }
    }
    serviceAccounts = { launcher = { create = true, name = module.identity.service_accounts["launcher"] } }
    stages = merge(
      # Both kinds of pool carry these labels. A step whose `spot` is true goes to spot nodes all the same.
      { gpu = { node_selector = { "kubealign/gpu" = "true", "karpenter.sh/capacity-type" = "on-demand" } } },
      { for step in local.jobs : step => { service_account = module.identity.service_accounts[step] } },
    )
  }
}

output "chart_values" {
  description = "Values of the chart: terraform output -raw chart_values > values.yaml"
  value       = yamlencode(local.chart_values)
}

output "service_accounts" {
  description = "The steps' service accounts as manifests, for GitOps: the chart makes the launcher's alone."
  value = join("---\n", [for step in sort(local.jobs) : yamlencode({
    apiVersion = "v1"
    kind       = "ServiceAccount"
    metadata   = { name = module.identity.service_accounts[step], namespace = module.identity.namespace }
    # Their pods ask the store for much and the API server for nothing.
    automountServiceAccountToken = false
  })])
}

output "kubeconfig" {
  description = "Command that makes a kubeconfig."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${module.cluster.name}"
}

output "image_prefix" {
  description = "PREFIX for docker buildx bake."
  value       = module.registry.image_prefix
}

output "data_root" {
  description = "Where raw data goes: kubealign run --data-root."
  value       = "s3://${module.store.bucket}/raw"
}

output "role_arns" {
  description = "Role of each step, and of the launcher."
  value       = module.identity.role_arns
}

output "gpu_pools" {
  description = "What the GPU pools have, as AWS says."
  value = { for name, pool in module.gpu_pool : name => {
    labels         = pool.labels
    efa_interfaces = pool.efa_interfaces
    instance_store = pool.instance_store
  } }
}

output "karpenter" {
  description = "settings.clusterName and settings.interruptionQueue of Karpenter's chart, and the EC2NodeClass's instanceProfile; null without Karpenter."
  value = var.karpenter ? {
    cluster_name       = module.cluster.name
    interruption_queue = module.karpenter[0].queue_name
    instance_profile   = module.karpenter[0].instance_profile
  } : null
}
