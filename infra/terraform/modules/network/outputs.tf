output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "private_subnet_ids" {
  description = "Private subnets in the order of availability_zones: cluster and nodes."
  value       = [for zone in var.availability_zones : aws_subnet.private[zone].id]
}

output "private_subnets_by_zone" {
  description = "Private subnet of each zone: a GPU pool with EFA lies in one of them."
  value       = { for zone, subnet in aws_subnet.private : zone => subnet.id }
}

output "public_subnet_ids" {
  description = "Public subnets, for load balancers; none without a NAT gateway."
  value       = [for zone in var.availability_zones : aws_subnet.public[zone].id if contains(keys(local.public_zones), zone)]
}
