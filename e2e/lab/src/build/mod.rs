//! Programs and images: built once, kept in a cache, never pulled.

mod archive;
pub(crate) mod cache;
pub(crate) mod image_store;
pub mod images;
pub(crate) mod product_image;
pub(crate) mod toolchain;
