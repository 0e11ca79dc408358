variable "cluster" {
  description = "Name of the EKS cluster."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets of the nodes; one zone keeps traffic between decoders and GPUs free of charge."
  type        = list(string)
}

variable "labeller_role_arn" {
  description = "Output labeller_role_arn of infra/terraform/store."
  type        = string
}

variable "namespace" {
  description = "Kubernetes namespace of the nightly job."
  type        = string
  default     = "serpipe"
}

variable "decode_instance_types" {
  description = "16 cores each, as infra/kuberay/rayjob.yaml asks for; several, so that spot finds one."
  type        = list(string)
  default     = ["c7i.4xlarge", "c6i.4xlarge", "c7a.4xlarge"]
}

variable "label_instance_types" {
  description = "One GPU each."
  type        = list(string)
  default     = ["g6.xlarge", "g5.xlarge"]
}

variable "decode_nodes" {
  description = "Most nodes that decode; the head's pod runs on one of them."
  type        = number
  default     = 3
}

variable "label_nodes" {
  description = "Most nodes with a GPU."
  type        = number
  default     = 1
}

variable "spot" {
  description = "Whether nodes may be taken away: the ledger makes that cheap."
  type        = bool
  default     = true
}

variable "disk_gb" {
  description = "Disk of a node: image, weights, copies of recordings, what Ray spills."
  type        = number
  default     = 200
}

variable "partition" {
  description = "AWS partition, for the ARNs of AWS's own policies."
  type        = string
  default     = "aws"
}

variable "tags" {
  description = "Tags of everything that is made."
  type        = map(string)
  default     = {}
}
