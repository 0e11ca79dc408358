# Nodes for a night on an EKS cluster that exists: cores that decode, GPUs that label, and nothing while nobody works.
# The EKS Pod Identity agent, the cluster autoscaler, NVIDIA's device plugin and KubeRay are the cluster's own business.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }
}

data "aws_iam_policy_document" "ec2" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

# What a node needs to be one. The right to the store is the pods', not the nodes'.
resource "aws_iam_role" "node" {
  name               = "${var.cluster}-serpipe-node"
  assume_role_policy = data.aws_iam_policy_document.ec2.json
  tags               = var.tags
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each   = toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly", "AmazonEKS_CNI_Policy"])
  role       = aws_iam_role.node.name
  policy_arn = "arn:${var.partition}:iam::aws:policy/${each.value}"
}

# Instance metadata is for the node: a hop limit of one keeps its role out of the pods.
resource "aws_launch_template" "node" {
  name_prefix = "${var.cluster}-serpipe-"
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size = var.disk_gb
      volume_type = "gp3"
      encrypted   = true
    }
  }
  tags = var.tags
}

resource "aws_eks_node_group" "decode" {
  depends_on      = [aws_iam_role_policy_attachment.node]
  cluster_name    = var.cluster
  node_group_name = "serpipe-decode"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = var.subnet_ids
  ami_type        = "AL2023_x86_64_STANDARD"
  capacity_type   = var.spot ? "SPOT" : "ON_DEMAND"
  instance_types  = var.decode_instance_types
  labels          = { serpipe-stage = "decode" }
  tags            = var.tags

  launch_template {
    id      = aws_launch_template.node.id
    version = aws_launch_template.node.latest_version
  }

  scaling_config {
    min_size     = 0
    desired_size = 0
    max_size     = var.decode_nodes
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }
}

resource "aws_eks_node_group" "label" {
  depends_on      = [aws_iam_role_policy_attachment.node]
  cluster_name    = var.cluster
  node_group_name = "serpipe-label"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = var.subnet_ids
  ami_type        = "AL2023_x86_64_NVIDIA"
  capacity_type   = var.spot ? "SPOT" : "ON_DEMAND"
  instance_types  = var.label_instance_types
  labels          = { serpipe-stage = "label" }
  tags            = var.tags

  taint {
    key    = "nvidia.com/gpu"
    value  = "present"
    effect = "NO_SCHEDULE"
  }

  launch_template {
    id      = aws_launch_template.node.id
    version = aws_launch_template.node.latest_version
  }

  scaling_config {
    min_size     = 0
    desired_size = 0
    max_size     = var.label_nodes
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }
}

resource "aws_eks_pod_identity_association" "labeller" {
  cluster_name    = var.cluster
  namespace       = var.namespace
  service_account = "serpipe-labeller"
  role_arn        = var.labeller_role_arn
  tags            = var.tags
}
