// Its tests run here.
include!("../../examples/cookbook/unit_tests.rs");
