# No provider: only text is made here, so a test can render it anywhere.
terraform {
  required_version = ">= 1.9"
}
