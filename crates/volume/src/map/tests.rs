//! The map against a model.
