// Its tests run here.
include!("../../examples/cookbook/integration_tests.rs");
