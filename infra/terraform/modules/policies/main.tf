# Who reads and writes what in the store, one policy a step. The layout is the store's:
# runs/<run>/<step>/{spec.json,result.json,metrics.jsonl,checkpoints/,output/}. A policy cannot know a run's id, so a
# pattern stands for it; IAM's * crosses slashes, which also covers steps in a folder of the run (runs/<run>/<arm>/<step>).
locals {
  objects = "${var.bucket_arn}/${var.root == "" ? "" : "${var.root}/"}"
  raw     = "${var.bucket_arn}/${var.raw}"

  # Folders by the name that `reads` uses, as the prefix of a listing.
  folders = {
    runs     = "${var.root == "" ? "" : "${var.root}/"}runs"
    datasets = "${var.root == "" ? "" : "${var.root}/"}datasets"
    models   = "${var.root == "" ? "" : "${var.root}/"}models"
    raw      = var.raw
  }

  # What a step leaves in its folder. Two names stand twice: deleting a folder also deletes an object of just its name,
  # and deleting an object (below) a manifest under its name, since the store cannot know which of them is there.
  own = ["result.json", "metrics.jsonl", "checkpoints", "checkpoints/*", "output", "output/*"]

  # These run beside whoever starts them, so the spec they work by is their own to write.
  beside = ["spec.json", "result.json", "result.json/*", "metrics.jsonl", "metrics.jsonl/*", "checkpoints", "checkpoints/*",
  "output", "output/*"]

  steps = {
    base_model = { reads = ["runs", "raw", "models"], places = ["base_model"], own = local.own, other = [] }
    # Shards of the raw data lie in a folder of their own.
    data_prep    = { reads = ["runs", "raw", "datasets", "models"], places = ["data_prep", "data_shards"], own = local.beside, other = [] }
    sft          = { reads = ["runs", "datasets"], places = ["sft"], own = local.own, other = [] }
    pmp          = { reads = ["runs", "datasets"], places = ["pmp"], own = local.own, other = [] }
    reward_model = { reads = ["runs", "datasets"], places = ["reward_model"], own = local.own, other = [] }
    ppo          = { reads = ["runs", "datasets"], places = ["ppo"], own = local.own, other = [] }
    # Compares with models that are promoted, on comparisons that people bring.
    evaluate         = { reads = ["runs", "raw", "models"], places = ["evaluate"], own = local.own, other = [] }
    sample_responses = { reads = ["runs", "models"], places = ["sample_responses"], own = local.own, other = [] }
    # Keeps a journal of what a judge has answered.
    annotate = { reads = ["runs", "raw"], places = ["annotate"], own = concat(local.beside, ["journal.jsonl"]), other = [] }
    publish  = { reads = ["runs", "models"], places = ["publish"], own = local.own, other = ["models/*"] }
  }

  step_writes = { for step, s in local.steps : step => concat(
    flatten([for place in s.places : [for name in s.own : "${local.objects}runs/*/${place}/${name}"]]),
    [for path in s.other : "${local.objects}${path}"],
  ) }

  # The launcher begins runs and specs, runs data_prep and annotate beside itself, and clears what an earlier attempt
  # has left. It deletes the others' results but cannot write them.
  launcher_writes = concat(
    [for name in ["runs/*/run.json", "runs/*/state.json", "runs/*/spec.json"] : "${local.objects}${name}"],
    local.step_writes.data_prep,
    local.step_writes.annotate,
  )
  launcher_deletes = [for name in ["result.json", "result.json/*", "metrics.jsonl", "metrics.jsonl/*", "checkpoints",
  "checkpoints/*", "output", "output/*"] : "${local.objects}runs/*/${name}"]

  rules = merge(
    { for step, s in local.steps : step => { reads = s.reads, writes = local.step_writes[step], deletes = local.step_writes[step] } },
    { launcher = {
      reads   = keys(local.folders)
      writes  = local.launcher_writes
      deletes = concat(local.launcher_deletes, local.step_writes.data_prep, local.step_writes.annotate)
    } },
  )

  statements = { for who, rule in local.rules : who => concat(
    [
      {
        Sid      = "List"
        Effect   = "Allow"
        Action   = ["s3:ListBucket"]
        Resource = [var.bucket_arn]
        # With and without what follows: a listing asks for a folder, a look at one object for its whole name.
        Condition = { StringLike = { "s3:prefix" = flatten([for folder in rule.reads : [local.folders[folder], "${local.folders[folder]}/*"]]) } }
      },
      {
        Sid       = "Read"
        Effect    = "Allow"
        Action    = ["s3:GetObject"]
        Resource  = [for folder in rule.reads : folder == "raw" ? "${local.raw}/*" : "${local.objects}${folder}/*"]
        Condition = {}
      },
      {
        Sid    = "Write"
        Effect = "Allow"
        # Of a broken upload in parts, the parts are taken back. No version is ever deleted for good.
        Action    = ["s3:PutObject", "s3:AbortMultipartUpload"]
        Resource  = distinct(rule.writes)
        Condition = {}
      },
      {
        Sid       = "Delete"
        Effect    = "Allow"
        Action    = ["s3:DeleteObject"]
        Resource  = distinct(rule.deletes)
        Condition = {}
      },
    ],
    var.kms_key_arn == null ? [] : [
      {
        Sid    = "Encrypt"
        Effect = "Allow"
        # An upload in parts also decrypts.
        Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource = [var.kms_key_arn]
        # The key is for this bucket's objects alone: S3 names the bucket where it has a bucket key, else the object.
        Condition = { StringLike = { "kms:EncryptionContext:aws:s3:arn" = [var.bucket_arn, "${var.bucket_arn}/*"] } }
      },
    ],
  ) }
}
