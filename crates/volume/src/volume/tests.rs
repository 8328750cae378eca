//! The volume against a model.
