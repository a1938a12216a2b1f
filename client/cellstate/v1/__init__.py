"""Generated stubs of the contract: see proto/cellstate/v1. Do not edit; `make proto` writes them."""
