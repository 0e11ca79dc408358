# What a labelling job does with S3, and nothing else: it reads recordings, manifests and weights, and reads, writes,
# lists and deletes in its store. No list of all buckets, no versions, no change of a bucket.

locals {
  store_objects = "${aws_s3_bucket.labels.arn}/*"
  read_objects  = [for arn in var.archive_bucket_arns : "${arn}/*"]
}

data "aws_iam_policy_document" "labeller" {
  statement {
    sid       = "Store"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = [local.store_objects]
  }
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = concat([aws_s3_bucket.labels.arn], var.archive_bucket_arns)
  }
  dynamic "statement" {
    for_each = length(local.read_objects) > 0 ? [local.read_objects] : []
    content {
      sid       = "Archive"
      actions   = ["s3:GetObject"]
      resources = statement.value
    }
  }
}

data "aws_iam_policy_document" "reader" {
  statement {
    sid       = "Read"
    actions   = ["s3:GetObject"]
    resources = [local.store_objects]
  }
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.labels.arn]
  }
}

# Pods of EKS get the role through Pod Identity; infra/terraform/nodes binds it to their service account.
data "aws_iam_policy_document" "pods" {
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]
    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "people" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "AWS"
      identifiers = var.reader_principal_arns
    }
  }
}

resource "aws_iam_role" "labeller" {
  name               = "${var.bucket}-labeller"
  assume_role_policy = data.aws_iam_policy_document.pods.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "labeller" {
  name   = "store"
  role   = aws_iam_role.labeller.id
  policy = data.aws_iam_policy_document.labeller.json
}

resource "aws_iam_role" "reader" {
  count              = length(var.reader_principal_arns) > 0 ? 1 : 0
  name               = "${var.bucket}-reader"
  assume_role_policy = data.aws_iam_policy_document.people.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "reader" {
  count  = length(aws_iam_role.reader)
  name   = "store"
  role   = aws_iam_role.reader[0].id
  policy = data.aws_iam_policy_document.reader.json
}
