mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
}

variables {
  name               = "train"
  availability_zones = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
}

run "one_gateway_serves_every_zone" {
  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_route.nat) == 3
    error_message = "Every private subnet needs a way out through the one gateway."
  }

  assert {
    condition     = length(distinct([for route in aws_route.nat : route.nat_gateway_id])) == 1
    error_message = "All routes lead to the one gateway."
  }

  assert {
    condition     = length(aws_vpc_endpoint.s3.route_table_ids) == 3
    error_message = "Every private route table reaches S3 without the NAT gateway."
  }
}

run "zonal_gateways_stay_in_their_zone" {
  variables {
    nat = "zonal"
  }

  assert {
    condition     = alltrue([for zone, route in aws_route.nat : route.nat_gateway_id == aws_nat_gateway.this[zone].id])
    error_message = "A zone must not depend on another zone's gateway."
  }
}

run "subnets_do_not_overlap" {
  command = plan

  assert {
    condition     = length(distinct(concat([for s in aws_subnet.private : s.cidr_block], [for s in aws_subnet.public : s.cidr_block]))) == 6
    error_message = "Six subnets, six networks."
  }

  assert {
    condition     = aws_subnet.private["eu-central-1c"].cidr_block == "10.0.32.0/20" && aws_subnet.public["eu-central-1a"].cidr_block == "10.0.240.0/24"
    error_message = "Private subnets come first, public ones from the last sixteenth."
  }
}

run "without_nat_nothing_is_public" {
  variables {
    nat                 = "none"
    interface_endpoints = ["sts", "ecr.api"]
  }

  assert {
    condition     = length(aws_internet_gateway.this) == 0 && length(aws_subnet.public) == 0 && length(aws_route.nat) == 0
    error_message = "No gateway, no public subnet, no route out."
  }

  assert {
    condition     = aws_vpc_endpoint.interface["ecr.api"].service_name == "com.amazonaws.eu-central-1.ecr.api" && aws_vpc_endpoint.interface["sts"].private_dns_enabled
    error_message = "The services are reached by their usual names."
  }

  assert {
    condition     = length(output.public_subnet_ids) == 0
    error_message = "There is no public subnet to name."
  }
}

run "one_zone_is_refused" {
  command = plan

  variables {
    availability_zones = ["eu-central-1a"]
  }

  expect_failures = [var.availability_zones]
}

run "a_small_network_is_refused" {
  command = plan

  variables {
    cidr = "10.0.0.0/24"
  }

  expect_failures = [var.cidr]
}
