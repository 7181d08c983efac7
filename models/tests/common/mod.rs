//! What the integration tests share. Each test binary uses a part of it.
#![expect(dead_code, reason = "compiled into every test binary, each of which uses a part")]

pub(crate) mod alloc;
pub(crate) mod drive;
