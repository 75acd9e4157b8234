// Compiles only: it needs AWS.
include!("../../examples/cookbook/assumed_role.rs");
