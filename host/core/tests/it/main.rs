//! Plans in, errors or pruned graphs out.

mod plans;
