output "store" {
  description = "What to give to serpipe label; put a name behind it."
  value       = "s3://${aws_s3_bucket.labels.bucket}"
}

output "labeller_role_arn" {
  description = "The role of the labelling job; infra/terraform/nodes wants it."
  value       = aws_iam_role.labeller.arn
}

output "reader_role_arn" {
  description = "The role of those who read the tables; null where nobody was named."
  value       = one(aws_iam_role.reader[*].arn)
}
