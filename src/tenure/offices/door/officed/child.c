/* Programs that we start, and their ends. */
#include "officed.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct child *children;
static pthread_mutex_t children_lock = PTHREAD_MUTEX_INITIALIZER;

/* Waits for every child, ours and orphans. A spawner holds the lock until its child is in the list. */
void *reaper(void *unused) {
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    struct timespec second = {1, 0};
    for (;;) {
        int status;
        pid_t pid;
        sigtimedwait(&set, NULL, &second);
        while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
            pthread_mutex_lock(&children_lock);
            for (struct child *c = children; c; c = c->next)
                if (c->pid == pid && !c->done) {
                    c->status = status, c->done = 1;
                    eventfd_write(c->event_fd, 1);
                    break;
                }
            pthread_mutex_unlock(&children_lock);
        }
    }
    return NULL;
}

void forget_child(struct child *c) {
    pthread_mutex_lock(&children_lock);
    for (struct child **p = &children; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
    pthread_mutex_unlock(&children_lock);
    close(c->event_fd);
    free(c);
}

int exit_code(int status) {
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static const char *lookup(char **env, const char *name) {
    size_t n = strlen(name);
    for (; *env; env++)
        if (!strncmp(*env, name, n) && (*env)[n] == '=') return *env + n + 1;
    return NULL;
}

/* execvpe with the PATH of the new environment. Returns only on failure, with the errno to report. */
static int exec_in_path(const char *search, const char *program, char **argv, char **env, char *path, size_t path_n) {
    int denied = 0;
    while (*search) {
        size_t n = strcspn(search, ":");
        if (n + strlen(program) + 2 < path_n) {
            memcpy(path, search, n), path[n] = '/', strcpy(path + n + 1, program);
            execve(path, argv, env);
            if (errno == EACCES) denied = 1;
            else if (errno != ENOENT && errno != ENOTDIR) return errno;
        }
        search += n + (search[n] == ':');
    }
    return denied ? EACCES : ENOENT;
}

/* Starts r->argv as r->user with the given descriptors. Returns NULL and fills `why` ("kind: message") on failure. */
struct child *spawn(struct request *r, int in, int out, int err, int tty, char *why, size_t why_n) {
    struct user u;
    char home[300], user[100], logname[100], shell[200], path[8192];
    const char *default_path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    if (find_user(r->user ? r->user : "root", &u)) {
        snprintf(why, why_n, "user: no user %.60s in the office", r->user);
        return NULL;
    }
    snprintf(home, sizeof home, "HOME=%s", u.home);
    snprintf(user, sizeof user, "USER=%s", u.name);
    snprintf(logname, sizeof logname, "LOGNAME=%s", u.name);
    snprintf(shell, sizeof shell, "SHELL=%s", u.shell);
    r->env[r->envc] = NULL;
    if (!lookup(r->env, "HOME")) r->env[r->envc++] = home, r->env[r->envc] = NULL;
    if (!lookup(r->env, "USER")) r->env[r->envc++] = user, r->env[r->envc] = NULL;
    if (!lookup(r->env, "LOGNAME")) r->env[r->envc++] = logname, r->env[r->envc] = NULL;
    if (!lookup(r->env, "SHELL")) r->env[r->envc++] = shell, r->env[r->envc] = NULL;
    if (!lookup(r->env, "PATH")) r->env[r->envc++] = (char *)default_path, r->env[r->envc] = NULL;
    char login0[150], *login_argv[2] = {login0, NULL}, **argv = r->argv;
    const char *program = r->argv[0];
    if (!r->argc) { /* a login shell */
        const char *base = strrchr(u.shell, '/');
        snprintf(login0, sizeof login0, "-%s", base ? base + 1 : u.shell);
        argv = login_argv, program = u.shell;
    }
    const char *volatile search = strchr(program, '/') ? NULL : lookup(r->env, "PATH");
    volatile int failed = 0, stage = 0; /* vfork shares memory: the child reports here */
    struct child *c = calloc(1, sizeof *c);
    if (!c || (c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
        free(c);
        snprintf(why, why_n, "memory: the office has no memory or descriptors left");
        return NULL;
    }
    pthread_mutex_lock(&children_lock);
    pid_t pid = vfork();
    if (pid == 0) {
        /* raw system calls: glibc's set*id would signal the other threads of the shared memory */
        sigset_t none;
        sigemptyset(&none);
        syscall(SYS_setsid);
        if (tty) ioctl(in, TIOCSCTTY, 0);
        if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) failed = errno, stage = 1, _exit(127);
        if (u.uid || u.gid) {
            if (syscall(SYS_setgroups, u.groups_n, u.groups) || syscall(SYS_setresgid, u.gid, u.gid, u.gid) ||
                syscall(SYS_setresuid, u.uid, u.uid, u.uid))
                failed = errno, stage = 2, _exit(127);
        }
        if (r->dir ? chdir(r->dir) : (chdir(u.home) && chdir("/"))) failed = errno, stage = 3, _exit(127);
        struct sigaction dfl = {.sa_handler = SIG_DFL};
        sigaction(SIGPIPE, &dfl, NULL);
        sigaction(SIGTERM, &dfl, NULL);
        sigprocmask(SIG_SETMASK, &none, NULL);
        if (!search) execve(program, argv, r->env), failed = errno;
        if (search) failed = exec_in_path(search, program, argv, r->env, path, sizeof path);
        stage = 4, _exit(127);
    }
    if (pid > 0) c->pid = pid, c->next = children, children = c;
    pthread_mutex_unlock(&children_lock);
    if (pid < 0 || failed) {
        int e = pid < 0 ? errno : failed;
        const char *what = pid < 0 ? "fork" : stage == 3 ? "cwd" : stage == 4 ? "program" : "setup";
        snprintf(why, why_n, "%s: %.200s: %s", what, stage == 3 ? (r->dir ? r->dir : u.home) : program, strerror(e));
        if (pid > 0) forget_child(c);
        else close(c->event_fd), free(c);
        return NULL;
    }
    return c;
}

void kill_group(pid_t pid, int sig) { kill(-pid, sig); }

/* Gives a process group KILL_GRACE_MS to end after `sig`, then kills it. */
void end_child(struct child *c, int sig) {
    kill_group(c->pid, sig);
    struct pollfd p = {c->event_fd, POLLIN, 0};
    if (poll(&p, 1, KILL_GRACE_MS) <= 0) {
        kill_group(c->pid, SIGKILL);
        poll(&p, 1, KILL_GRACE_MS);
    }
}

/* Signals the process group of every child that runs. */
void signal_children(int sig) {
    pthread_mutex_lock(&children_lock);
    for (struct child *c = children; c; c = c->next)
        if (!c->done) kill_group(c->pid, sig);
    pthread_mutex_unlock(&children_lock);
}

int children_run(void) {
    int running = 0;
    pthread_mutex_lock(&children_lock);
    for (struct child *c = children; c; c = c->next) running |= !c->done;
    pthread_mutex_unlock(&children_lock);
    return running;
}
