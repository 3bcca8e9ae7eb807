//! Golden files, of any bytes: an error with its sentence, or a case whose tensors are those of its problem.

use crate::golden::Golden;

/// Reads the bytes as a file.
pub fn body(data: &[u8]) {
    match Golden::parse(data) {
        Ok(golden) => {
            assert!(!golden.arguments.describe().is_empty());
            assert_eq!(golden.arguments.params().rank(), golden.arguments.token_shape.len());
            for name in ["q", "k", "v", "out", "lse"] {
                let values = golden.require(name).expect("always there");
                assert!(values.tensor.as_slice().len() <= data.len());
            }
            assert!(!golden.has_gradients() || golden.get("d_out").is_some());
            assert_eq!(golden.get("q").map(|values| values.element_type), Some(golden.element_type));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
