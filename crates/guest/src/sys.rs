//! The few system calls that `rustix` does not offer, each behind a safe or narrowly unsafe function.
//!
//! Everything here is called from single-threaded processes only (the launcher, the builder, the zygote), except where a
//! function says otherwise.

use rustix::process::Pid;
use std::{
    ffi::{CStr, CString, c_char},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Fork {
    /// The old process, with the id of the new one.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Forks this process.
///
/// # Safety
/// The process must have one thread, so that no lock (the allocator's, for one) can be held by a thread that does not
/// exist in the child.
pub(crate) unsafe fn fork() -> io::Result<Fork> {
    // SAFETY: the caller promises one thread; `fork` itself touches no memory of ours.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent))
}

/// Ends a forked child without running the destructors and exit handlers that belong to its parent.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` only ends the process.
    unsafe { libc::_exit(status) }
}

/// Replaces the program of this process. Returns only on failure.
pub(crate) fn execve(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let argv = pointers(argv);
    let env = pointers(env);
    // SAFETY: both arrays end with a null pointer and hold pointers to strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Attributes to set on a mount, and the user namespace whose id map it gets.
#[derive(Debug, Default)]
pub(crate) struct MountAttributes<'a> {
    /// `MOUNT_ATTR_*` bits.
    pub(crate) set: u64,
    /// The user namespace of an id-mapped mount.
    pub(crate) id_map: Option<BorrowedFd<'a>>,
}

/// Changes the attributes of the mount that `mount` is the root of.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    attributes: &MountAttributes<'_>,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes.set
            | if attributes.id_map.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: 0,
        propagation: 0,
        userns_fd: attributes.id_map.map_or(0, |fd| fd.as_raw_fd().unsigned_abs().into()),
    };
    // SAFETY: the path is a valid empty string and `attr` is a valid `struct mount_attr` of the given size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor from `first` on as close-on-exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: takes integers only. That nobody misses what is closed is the promise of `close_all_but`.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from 3 on that is not in `kept`, whoever believes to own it.
///
/// # Safety
/// No owner of a closed descriptor may use or drop it afterwards: the process must go on to exec or [`exit_now`].
pub(crate) unsafe fn close_all_but(kept: &mut [RawFd]) -> io::Result<()> {
    kept.sort_unstable();
    let mut first = 3;
    for kept in kept.iter().map(|kept| kept.unsigned_abs()).filter(|kept| *kept >= 3) {
        if first < kept {
            close_range(first, kept - 1, 0)?;
        }
        first = kept + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// Makes `descriptor` also descriptor number `number`, whatever that was, open across an exec.
pub(crate) fn duplicate_for_exec(descriptor: &OwnedFd, number: i32) -> io::Result<()> {
    if descriptor.as_raw_fd() == number {
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        return Ok(());
    }
    // SAFETY: takes integers only. The caller is about to exec, so whoever owned `number` does not miss it.
    if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Installs a compiled seccomp filter on this thread, *without* `no_new_privs`: the container needs set-user-id programs.
/// That takes CAP_SYS_ADMIN in the thread's user namespace.
pub(crate) fn seccomp(filter: &[seccompiler::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: `program` describes `len` instructions, which outlive the call and which the kernel only reads. Both crates
    // define `sock_filter` as the kernel's layout.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Blocks SIGCHLD and gives a non-blocking descriptor that becomes readable when one arrives.
pub(crate) fn child_signal() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero `sigset_t` is a valid value to initialise.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid signal set.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: `set` is a valid signal set and SIGCHLD a valid signal.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    // SAFETY: `set` is initialised; the old mask is not asked for.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `signalfd` returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives every signal its default action and unblocks all, as a program expects to start. Ignored signals would stay
/// ignored across an exec.
pub(crate) fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: installing a default action runs no code of ours; numbers without an action (SIGKILL) only give an error.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero `sigset_t` is a valid value to initialise.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is a valid signal set.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: `none` is initialised; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
}

/// Freezes (`true`) or thaws the filesystem that `mount` is on. Safe from any thread.
pub(crate) fn freeze(mount: BorrowedFd<'_>, frozen: bool) -> io::Result<()> {
    const FIFREEZE: libc::c_ulong = 0xC004_5877;
    const FITHAW: libc::c_ulong = 0xC004_5878;
    let request = if frozen { FIFREEZE } else { FITHAW };
    // SAFETY: neither request reads its argument.
    if unsafe { libc::ioctl(mount.as_raw_fd(), request, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Registers a non-blocking descriptor with the async runtime. Safe from any thread.
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one and the same open descriptor until it is dropped, and nothing closes it behind its back.
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }.map_err(Into::into)
}
