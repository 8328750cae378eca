//! Giving memory back to the system.
//!
//! Building segments takes tens of MB for moments. glibc keeps what was freed for the next time, which for a disk that is
//! idle most of its life is most of its memory.

/// Returns freed memory to the system. Takes about a millisecond.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: glibc documents it as safe to call from any thread at any time.
        unsafe { malloc_trim(0) };
    }
}
