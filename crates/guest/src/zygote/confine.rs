//! What programs in the container may not do: the last step before the zygote serves.
//!
//! Tenants are hostile and share the kernel, so everything that only administrators of a kernel need is gone, and new user
//! namespaces with it, since they would hand every container the kernel code behind mounts, packet filters and the like.
//! `no_new_privs` stays off: `sudo` must work, and root of the container is nobody outside.

use super::{Step, StepError, identity};
use rustix::{
    process::{DumpableBehavior, Resource, Rlimit},
    thread::{CapabilitySet, LinkNameSpaceType},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

/// Enters the user namespace as its root and gives up what a container must not have.
pub(super) fn confine(user_namespace: OwnedFd) -> Result<(), StepError> {
    let filters = filters().step("compile the system call filters")?;
    raise_descriptor_limit().step("raise the limit of open files")?;
    rustix::thread::move_into_link_name_space(
        user_namespace.as_fd(),
        Some(LinkNameSpaceType::User),
    )
    .step("enter the user namespace")?;
    drop(user_namespace);
    identity::become_container_root().step("become the container's root")?;
    // The filters need CAP_SYS_ADMIN, which the next step gives up.
    for filter in &filters {
        crate::sys::seccomp(filter).step("install a system call filter")?;
    }
    let kept = KEPT.iter().fold(CapabilitySet::empty(), |kept, (capability, _)| kept | *capability);
    identity::keep_capabilities(kept).step("give up capabilities")?;
    // Root of the container could otherwise trace the zygote and speak to the agent in its name.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("forbid tracing")
}

/// The zygote holds two descriptors for each process that is starting.
fn raise_descriptor_limit() -> io::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    Ok(rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: limit.maximum, maximum: limit.maximum },
    )?)
}

/// The capabilities that root of the container keeps, over what belongs to its user namespace only.
const KEPT: [(CapabilitySet, &str); 14] = [
    (CapabilitySet::AUDIT_WRITE, "sudo and su write audit records"),
    (CapabilitySet::CHOWN, "package managers set owners"),
    (CapabilitySet::DAC_OVERRIDE, "root reads and writes every file of its disk"),
    (CapabilitySet::FOWNER, "root changes modes and times of every file of its disk"),
    (CapabilitySet::FSETID, "installers keep set-user-id bits"),
    (CapabilitySet::KILL, "root signals every process of its container"),
    (CapabilitySet::MKNOD, "archives hold named pipes; devices are refused by the user namespace"),
    (
        CapabilitySet::NET_BIND_SERVICE,
        "programs that carry it as a file capability start; it has no effect",
    ),
    (
        CapabilitySet::NET_RAW,
        "ping carries it as a file capability and would not start without; it has no effect",
    ),
    (CapabilitySet::SETFCAP, "packages install file capabilities"),
    (CapabilitySet::SETGID, "su, sudo and daemons change groups"),
    (CapabilitySet::SETPCAP, "daemons give capabilities up"),
    (CapabilitySet::SETUID, "su, sudo and daemons change users"),
    (CapabilitySet::SYS_CHROOT, "debootstrap, sshd and other daemons change root"),
];

/// System calls that are refused with EPERM, by why.
const DENIED: [(&[libc::c_long], &str); 9] = [
    (&[libc::SYS_add_key, libc::SYS_keyctl, libc::SYS_request_key], "keyrings are not namespaced"),
    (
        &[
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_lookup_dcookie,
        ],
        "large kernel interfaces with a history of holes",
    ),
    (
        &[
            libc::SYS_delete_module,
            libc::SYS_finit_module,
            libc::SYS_init_module,
            libc::SYS_kexec_file_load,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_iopl,
            libc::SYS_ioperm,
        ],
        "they change or end the kernel",
    ),
    (
        &[
            libc::SYS_adjtimex,
            libc::SYS_clock_adjtime,
            libc::SYS_clock_settime,
            libc::SYS_settimeofday,
        ],
        "time is the host's",
    ),
    (
        &[libc::SYS_syslog, libc::SYS_acct, libc::SYS_vhangup],
        "logs, accounting and terminals of the host",
    ),
    (
        &[
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_pivot_root,
            libc::SYS_umount2,
        ],
        "mounts are the agent's",
    ),
    (&[libc::SYS_open_by_handle_at], "it opens files of a disk by number, around every mount"),
    (
        &[
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_swapoff,
            libc::SYS_swapon,
            libc::SYS_nfsservctl,
        ],
        "disks and swap are the host's",
    ),
    (
        &[libc::SYS_setns, libc::SYS__sysctl, libc::SYS_sysfs, libc::SYS_uselib, libc::SYS_ustat],
        "not needed",
    ),
];

/// Kinds of namespaces that nothing in the container may make, as flags of `clone` and `unshare`.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// The low bits of a `clone` flag word are a signal number, so this flag counts for `unshare` only.
const NEW_TIME_NAMESPACE: u64 = 0x80;

/// Marks a system call of the x32 interface, another way to every call above. Most kernels do not have it.
const X32: i64 = 0x4000_0000;

/// The number of `kexec_load` in that interface, one of the few that differ.
const X32_KEXEC_LOAD: i64 = X32 + 528;

/// Kinds of sockets that are not refused. Others know no routes, no rules and some not even network namespaces, as those
/// between a virtual machine and its host.
const SOCKETS: [libc::c_int; 4] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_UNIX];

fn filters() -> io::Result<[BpfProgram; 3]> {
    let mut refused = BTreeMap::new();
    for number in DENIED.iter().flat_map(|(numbers, _)| numbers.iter()) {
        refused.insert(*number, Vec::new());
        refused.insert(*number | X32, Vec::new());
    }
    refused.insert(X32_KEXEC_LOAD, Vec::new());
    let mut flags: Vec<u64> =
        NAMESPACES.iter().map(|flag| u64::from(flag.unsigned_abs())).collect();
    for number in [libc::SYS_clone, libc::SYS_clone | X32] {
        refused.insert(number, any_flag(&flags)?);
    }
    flags.push(NEW_TIME_NAMESPACE);
    for number in [libc::SYS_unshare, libc::SYS_unshare | X32] {
        refused.insert(number, any_flag(&flags)?);
    }
    // A filter cannot look into the structure that `clone3` is given. C libraries fall back to `clone` on ENOSYS.
    let absent =
        BTreeMap::from([(libc::SYS_clone3, Vec::new()), (libc::SYS_clone3 | X32, Vec::new())]);
    let other = none_of(&SOCKETS)?;
    let sockets = [libc::SYS_socket, libc::SYS_socketpair]
        .into_iter()
        .flat_map(|number| [number, number | X32])
        .map(|number| (number, vec![other.clone()]))
        .collect();
    Ok([
        compile(refused, libc::EPERM)?,
        compile(absent, libc::ENOSYS)?,
        compile(sockets, libc::EAFNOSUPPORT)?,
    ])
}

/// A rule that matches if the first argument, a number, is none of these.
fn none_of(numbers: &[libc::c_int]) -> io::Result<SeccompRule> {
    let differs = |number: &libc::c_int| {
        let number = u64::from(number.unsigned_abs());
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, number)
    };
    let differs =
        numbers.iter().map(differs).collect::<Result<_, _>>().map_err(io::Error::other)?;
    SeccompRule::new(differs).map_err(io::Error::other)
}

/// Rules of which one matches if the first argument has one of the flags.
fn any_flag(flags: &[u64]) -> io::Result<Vec<SeccompRule>> {
    let rule = |flag: &u64| {
        let set = SeccompCondition::new(
            0,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(*flag),
            *flag,
        )?;
        SeccompRule::new(vec![set])
    };
    flags.iter().map(rule).collect::<Result<_, _>>().map_err(io::Error::other)
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> io::Result<BpfProgram> {
    let action = SeccompAction::Errno(errno.unsigned_abs());
    let arch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, action, arch).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}
