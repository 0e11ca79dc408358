variable "bucket" {
  description = "Name of the bucket for the labels, which is made; several stores may share it."
  type        = string
}

variable "archive_bucket_arns" {
  description = "Buckets that hold recordings, manifests and weights; they are read only."
  type        = list(string)
  default     = []
}

variable "reader_principal_arns" {
  description = "Roles or users who may read the tables; without any, no role for them is made."
  type        = list(string)
  default     = []
}

variable "keep_deleted_days" {
  description = "Days for which a deleted object can be had back."
  type        = number
  default     = 14
}

variable "tags" {
  description = "Tags of everything that is made."
  type        = map(string)
  default     = {}
}
