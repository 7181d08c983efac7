//! [`Shape`]: the dimensions of a stored tensor, checked and kept without an allocation.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Most dimensions that a weight tensor may have.
pub const MAX_DIMS: usize = 4;

/// Dimensions of a tensor, outermost first (a matrix is `[rows, cols]`); at most [`MAX_DIMS`].
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    dims: [u64; MAX_DIMS],
    num_dims: usize,
}

impl Shape {
    /// The shape with these dimensions, outermost first; `None` when there are more than [`MAX_DIMS`].
    #[must_use]
    pub fn new(dims: &[u64]) -> Option<Self> {
        let mut out = Self { dims: [0; MAX_DIMS], num_dims: dims.len() };
        out.dims.get_mut(..dims.len())?.copy_from_slice(dims);
        Some(out)
    }

    /// The dimensions, outermost first.
    #[must_use]
    pub fn dims(&self) -> &[u64] {
        &self.dims[..self.num_dims]
    }

    /// Product of all dimensions; `None` when it exceeds 64 bits.
    #[must_use]
    pub fn num_elements(&self) -> Option<u64> {
        self.dims().iter().try_fold(1_u64, |product, dim| product.checked_mul(*dim))
    }

    /// Length of a row: the innermost dimension (1 for a scalar).
    #[must_use]
    pub fn row_len(&self) -> u64 {
        self.dims().last().copied().unwrap_or(1)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_DIMS} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Shape::default();
                while let Some(dim) = seq.next_element()? {
                    let place = shape.dims.get_mut(shape.num_dims);
                    *place.ok_or_else(|| A::Error::invalid_length(shape.num_dims + 1, &self))? = dim;
                    shape.num_dims += 1;
                }
                Ok(shape)
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_that_wrap_are_not_numbers() {
        assert_eq!(Shape::new(&[1 << 40, 1 << 40]).unwrap().num_elements(), None);
        assert_eq!(Shape::new(&[3, 5]).unwrap().num_elements(), Some(15));
        assert_eq!(Shape::new(&[3, 5]).unwrap().row_len(), 5);
        assert!(Shape::new(&[1; MAX_DIMS + 1]).is_none());
    }

    #[test]
    fn json_with_too_many_or_negative_dimensions_is_refused() {
        assert_eq!(serde_json::from_str::<Shape>("[2,3]").unwrap().dims(), [2, 3]);
        assert!(serde_json::from_str::<Shape>("[1,1,1,1,1]").is_err());
        assert!(serde_json::from_str::<Shape>("[-1]").is_err());
    }
}
