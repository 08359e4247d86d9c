/* officed: the office's end of the door.
 *
 * It runs inside the office as the child of PID 1 and dials out to UNIX sockets of the server (the doorway), because
 * an office has no network on which anybody could call it. It keeps IDLE_CONNECTIONS open to the door socket; the server
 * picks one, writes a request, and that connection becomes the session. So every session has a kernel socket of its
 * own (flow control included), and an awake office answers without a connection being made first.
 *
 * Wire format, all integers big-endian.
 *   request   u32 length, then fields: u8 tag, u32 length, bytes
 *             o op   k key   a argument*   e NAME=value*   d directory   u user   t "rows cols"   T timeout in ms   w wait in ms
 *   frame     u8 type, u32 length, bytes
 *   to us     0 stdin   e end of stdin   w "rows cols"   s "signal"
 *   from us   p started   1 stdout   2 stderr   x "code timed_out"   j job status   ! error ("kind: message")
 *
 * Operations: ping; run (attached: ends with the connection); job-start, job-status, job-stop, job-forget (a job belongs to
 * its key, not to a connection: its output and exit code stay in --jobs until forgotten); dial (bytes to a port of the
 * office); ssh (bytes to an `sshd -i` of its own).
 *
 * It is one static binary mounted read-only from the host, so an office that deleted its root still has a door.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    IDLE_CONNECTIONS = 4,
    REQUEST_BYTES_MAX = 2 << 20,
    FRAME_BYTES_MAX = 1 << 18,
    CHUNK_BYTES = 1 << 16,
    ARGS_MAX = 4096,
    SESSIONS_MAX = 512,
    THREAD_STACK_BYTES = 256 << 10,
    SPOOL_HALF_BYTES = 512 << 10, /* a job keeps at least this much of its last output */
    TAIL_BYTES = 1 << 16,
    KILL_GRACE_MS = 5000,
    REDIAL_MS_MIN = 10,
    REDIAL_MS_MAX = 500,
    STOP_GRACE_MS = 1000,
};

static const char *door_path, *jobs_dir;
static int own_process_space;
static pthread_attr_t detached;

/* --- small helpers ------------------------------------------------------------------------------------------- */

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void sleep_ms(int ms) {
    struct timespec t = {ms / 1000, (ms % 1000) * 1000000L};
    nanosleep(&t, NULL);
}

static int write_all(int fd, const void *data, size_t n) {
    const char *p = data;
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0 && errno == EAGAIN) {
            struct pollfd w = {fd, POLLOUT, 0};
            poll(&w, 1, 1000);
            continue;
        }
        if (k <= 0) return -1;
        p += k, n -= (size_t)k;
    }
    return 0;
}

static int read_all(int fd, void *data, size_t n) {
    char *p = data;
    while (n) {
        ssize_t k = read(fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return -1;
        p += k, n -= (size_t)k;
    }
    return 0;
}

/* One write per frame: `buf` has 5 bytes of room before the payload. */
static int send_in_place(int fd, char type, char *buf, uint32_t n) {
    uint32_t be = htonl(n);
    buf[0] = type;
    memcpy(buf + 1, &be, 4);
    return write_all(fd, buf, n + 5);
}

static int send_frame(int fd, char type, const void *data, uint32_t n) {
    char small[5 + 1024];
    if (n <= 1024) {
        memcpy(small + 5, data, n);
        return send_in_place(fd, type, small, n);
    }
    uint32_t be = htonl(n);
    small[0] = type;
    memcpy(small + 1, &be, 4);
    return write_all(fd, small, 5) || write_all(fd, data, n) ? -1 : 0;
}

static int send_text(int fd, char type, const char *format, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    if (n >= (int)sizeof text) n = sizeof text - 1;
    return send_frame(fd, type, text, (uint32_t)n);
}

static int dial_unix(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path) return -1;
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (connect(fd, (void *)&a, sizeof a)) {
        close(fd);
        return -1;
    }
    return fd;
}

static int spawn_thread(void *(*f)(void *), void *arg) {
    pthread_t t;
    return pthread_create(&t, &detached, f, arg);
}

/* --- requests -------------------------------------------------------------------------------------------------- */

struct request {
    char *op, *key, *dir, *user, *tty;
    char *argv[ARGS_MAX + 1], *env[ARGS_MAX + 8];
    int argc, envc;
    int64_t timeout_ms, wait_ms;
    char *raw;
};

static void free_request(struct request *r) {
    if (r) free(r->raw), free(r);
}

/* Fields become NUL-terminated strings in place: the byte after a field is the next tag, already read by then. */
static struct request *read_request(int fd) {
    uint32_t be, n;
    if (read_all(fd, &be, 4)) return NULL;
    n = ntohl(be);
    if (n > REQUEST_BYTES_MAX) return NULL;
    struct request *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->raw = malloc(n + 1);
    if (!r->raw || read_all(fd, r->raw, n)) return free_request(r), NULL;
    r->raw[n] = 0;
    for (uint32_t i = 0; i + 5 <= n;) {
        char tag = r->raw[i];
        r->raw[i] = 0;
        memcpy(&be, r->raw + i + 1, 4);
        uint32_t len = ntohl(be);
        char *v = r->raw + i + 5;
        if (len > n - i - 5) return free_request(r), NULL;
        i += 5 + len;
        switch (tag) {
        case 'o': r->op = v; break;
        case 'k': r->key = v; break;
        case 'd': r->dir = v; break;
        case 'u': r->user = v; break;
        case 't': r->tty = v; break;
        case 'a': if (r->argc < ARGS_MAX) r->argv[r->argc++] = v; break;
        case 'e': if (r->envc < ARGS_MAX) r->env[r->envc++] = v; break;
        /* numbers are parsed when all fields are terminated */
        case 'T': r->timeout_ms = v - r->raw; break;
        case 'w': r->wait_ms = v - r->raw; break;
        }
    }
    if (r->timeout_ms) r->timeout_ms = atoll(r->raw + r->timeout_ms);
    if (r->wait_ms) r->wait_ms = atoll(r->raw + r->wait_ms);
    if (!r->op) return free_request(r), NULL;
    return r;
}

static int valid_key(const char *k) {
    size_t n = k ? strlen(k) : 0;
    if (!n || n > 128 || k[0] == '.') return 0;
    for (; *k; k++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-", *k)) return 0;
    return 1;
}

/* --- users: /etc/passwd and /etc/group read directly, since a static binary has no NSS ---------------------------- */

struct user {
    uid_t uid;
    gid_t gid;
    char name[64], home[256], shell[128];
    gid_t groups[64];
    int groups_n;
};

static int find_user(const char *name, struct user *u) {
    char line[1024];
    memset(u, 0, sizeof *u);
    FILE *f = fopen("/etc/passwd", "re");
    int found = 0;
    while (f && !found && fgets(line, sizeof line, f)) {
        char *field[7], *rest = line;
        int n = 0;
        line[strcspn(line, "\n")] = 0;
        while (n < 7 && (field[n] = strsep(&rest, ":"))) n++;
        if (n < 7 || strcmp(field[0], name)) continue;
        u->uid = (uid_t)atoi(field[2]), u->gid = (gid_t)atoi(field[3]);
        snprintf(u->name, sizeof u->name, "%s", field[0]);
        snprintf(u->home, sizeof u->home, "%s", field[5]);
        snprintf(u->shell, sizeof u->shell, "%s", *field[6] ? field[6] : "/bin/sh");
        found = 1;
    }
    if (f) fclose(f);
    if (!found && !strcmp(name, "root")) { /* an office that deleted its root must still be reachable */
        strcpy(u->name, "root"), strcpy(u->home, "/"), strcpy(u->shell, "/bin/sh");
        found = 1;
    }
    if (!found) return -1;
    u->groups[u->groups_n++] = u->gid;
    f = fopen("/etc/group", "re");
    while (f && fgets(line, sizeof line, f)) {
        char *field[4], *rest = line, *member;
        int n = 0;
        line[strcspn(line, "\n")] = 0;
        while (n < 4 && (field[n] = strsep(&rest, ":"))) n++;
        if (n < 4) continue;
        while ((member = strsep(&field[3], ",")))
            if (!strcmp(member, name) && u->groups_n < 64) u->groups[u->groups_n++] = (gid_t)atoi(field[2]);
    }
    if (f) fclose(f);
    return 0;
}

/* --- children ---------------------------------------------------------------------------------------------------- */

struct child {
    pid_t pid;
    int status, done, event_fd;
    struct child *next;
};

static struct child *children;
static pthread_mutex_t children_lock = PTHREAD_MUTEX_INITIALIZER;

/* Waits for every child, ours and orphans. A spawner holds the lock until its child is in the list. */
static void *reaper(void *unused) {
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

static void forget_child(struct child *c) {
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

static int exit_code(int status) {
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
static struct child *spawn(struct request *r, int in, int out, int err, int tty, char *why, size_t why_n) {
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

static void kill_group(pid_t pid, int sig) { kill(-pid, sig); }

/* Gives a process group KILL_GRACE_MS to end after `sig`, then kills it. */
static void end_child(struct child *c, int sig) {
    kill_group(c->pid, sig);
    struct pollfd p = {c->event_fd, POLLIN, 0};
    if (poll(&p, 1, KILL_GRACE_MS) <= 0) {
        kill_group(c->pid, SIGKILL);
        poll(&p, 1, KILL_GRACE_MS);
    }
}

/* --- attached sessions --------------------------------------------------------------------------------------------- */

static int open_pty(const char *size, int *master, int *slave) {
    struct winsize w = {.ws_row = 24, .ws_col = 80};
    sscanf(size, "%hu %hu", &w.ws_row, &w.ws_col);
    *master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*master < 0) return -1;
    char name[64];
    if (unlockpt(*master) || ptsname_r(*master, name, sizeof name) ||
        (*slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
        close(*master);
        return -1;
    }
    ioctl(*slave, TIOCSWINSZ, &w);
    return 0;
}

/* Moves what is readable on `from` to the connection. Returns 1 when more may come, 0 at its end, -1 when the server left. */
static int forward_output(int conn, int from, char type, char *buf) {
    ssize_t n = read(from, buf + 5, CHUNK_BYTES);
    if (n < 0) return errno == EAGAIN || errno == EINTR ? 1 : 0; /* a PTY ends with EIO */
    if (n == 0) return 0;
    return send_in_place(conn, type, buf, (uint32_t)n) ? -1 : 1;
}

static void run_attached(int conn, struct request *r) {
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, master = -1, slave = -1;
    char why[400] = "setup: no descriptors left in the office";
    struct child *c = NULL;
    if (r->tty ? !open_pty(r->tty, &master, &slave)
               : !pipe2(in, O_CLOEXEC) && !pipe2(out, O_CLOEXEC) && !pipe2(err, O_CLOEXEC))
        c = r->tty ? spawn(r, slave, slave, slave, 1, why, sizeof why) : spawn(r, in[0], out[1], err[1], 0, why, sizeof why);
    else if (r->tty)
        snprintf(why, sizeof why, "tty: the office has no terminals left");
    close(in[0]), close(out[1]), close(err[1]), close(slave);
    int to = r->tty ? master : in[1], from1 = r->tty ? master : out[0], from2 = r->tty ? -1 : err[0];
    if (!c) {
        send_text(conn, '!', "%s", why);
        close(to), close(from1), close(from2);
        return;
    }
    fcntl(to, F_SETFL, O_NONBLOCK), fcntl(from1, F_SETFL, O_NONBLOCK);
    if (from2 >= 0) fcntl(from2, F_SETFL, O_NONBLOCK);
    char *buf = malloc(CHUNK_BYTES + 5), *pending = malloc(FRAME_BYTES_MAX);
    size_t pending_n = 0, pending_at = 0;
    int gone = !buf || !pending || send_text(conn, 'p', "%d", c->pid), eof_wanted = 0, in_open = 1;
    int64_t deadline = r->timeout_ms ? now_ms() + r->timeout_ms : 0;
    int timed_out = 0, exited = 0;
    while (!gone && !exited) {
        int stdin_busy = pending_at < pending_n;
        struct pollfd p[5] = {
            {conn, stdin_busy ? 0 : POLLIN, 0},
            {from1, POLLIN, 0},
            {from2, POLLIN, 0},
            {in_open && stdin_busy ? to : -1, POLLOUT, 0},
            {c->event_fd, POLLIN, 0},
        };
        int wait = -1;
        if (deadline) wait = deadline > now_ms() ? (int)(deadline - now_ms()) : 0;
        if (poll(p, 5, wait) == 0 && deadline && !timed_out) {
            timed_out = 1, deadline = now_ms() + KILL_GRACE_MS;
            kill_group(c->pid, SIGTERM);
            continue;
        }
        if (timed_out && now_ms() >= deadline) kill_group(c->pid, SIGKILL), deadline = now_ms() + KILL_GRACE_MS;
        if (from1 >= 0 && p[1].revents) {
            int k = forward_output(conn, from1, '1', buf);
            if (k < 0) gone = 1;
            if (k == 0 && !r->tty) close(from1), from1 = -1;
            else if (k == 0) sleep_ms(2); /* the terminal's last user left; its exit follows */
        }
        if (from2 >= 0 && p[2].revents) {
            int k = forward_output(conn, from2, '2', buf);
            if (k < 0) gone = 1;
            if (k == 0) close(from2), from2 = -1;
        }
        if (p[3].revents) {
            ssize_t k = write(to, pending + pending_at, pending_n - pending_at);
            if (k > 0) pending_at += (size_t)k;
            else if (k < 0 && errno != EAGAIN && errno != EINTR) pending_at = pending_n, in_open = 0;
        }
        if (p[0].revents) {
            char head[5];
            uint32_t n;
            if (read_all(conn, head, 5)) { gone = 1; continue; }
            memcpy(&n, head + 1, 4), n = ntohl(n);
            if (n >= FRAME_BYTES_MAX || read_all(conn, pending, n)) { gone = 1; continue; }
            pending[n] = 0, pending_n = pending_at = 0;
            struct winsize w = {0};
            switch (head[0]) {
            case '0': if (in_open) pending_n = n; break;
            case 'e': eof_wanted = 1; break;
            case 's': kill_group(c->pid, atoi(pending)); break;
            case 'w':
                if (r->tty && sscanf(pending, "%hu %hu", &w.ws_row, &w.ws_col) == 2) ioctl(master, TIOCSWINSZ, &w);
                break;
            }
        }
        if (eof_wanted && pending_at >= pending_n && in_open) {
            eof_wanted = 0;
            if (r->tty) (void)!write(to, "\x04", 1);
            else close(to), to = -1, in_open = 0;
        }
        if (p[4].revents) exited = 1;
    }
    if (exited) { /* what it wrote before it ended is in the pipes */
        int64_t until = now_ms() + KILL_GRACE_MS;
        for (int i = 0; i < 2 && !gone; i++) {
            int fd = i ? from2 : from1, k = 1;
            while (fd >= 0 && k == 1 && now_ms() < until) {
                struct pollfd p = {fd, POLLIN, 0};
                if (poll(&p, 1, 0) <= 0) break;
                k = forward_output(conn, fd, i ? '2' : '1', buf);
            }
            if (k < 0) gone = 1;
        }
        if (!gone) send_text(conn, 'x', "%d %d", exit_code(c->status), timed_out);
        if (timed_out) kill_group(c->pid, SIGKILL);
    } else {
        end_child(c, SIGHUP);
    }
    if (!r->tty && to >= 0) close(to);
    if (from1 >= 0) close(from1);
    if (from2 >= 0) close(from2);
    forget_child(c);
    free(buf), free(pending);
}

/* --- jobs: commands that belong to a key ------------------------------------------------------------------------------ */

struct job {
    char key[132];
    struct child *child;
    int pipe_fd, finished, stop_wanted, users;
    int64_t started_ms, timeout_ms;
    struct job *next;
};

static struct job *jobs;
static pthread_mutex_t jobs_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t jobs_changed;

static void job_path(char *path, size_t n, const char *key, const char *file) {
    snprintf(path, n, "%s/%s%s%s", jobs_dir, key, *file ? "/" : "", file);
}

static void sync_dir(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) fsync(fd), close(fd);
}

/* The record appears whole or not at all. */
static void record_exit(struct job *j, int code, int timed_out, long long bytes) {
    char path[600], final[600];
    job_path(path, sizeof path, j->key, "exit.new");
    job_path(final, sizeof final, j->key, "exit");
    FILE *f = fopen(path, "we");
    if (!f) return;
    fprintf(f, "%d %d %lld %lld\n", code, timed_out, bytes, (long long)(now_ms() - j->started_ms));
    int bad = fflush(f) || fsync(fileno(f));
    if (!fclose(f) && !bad) rename(path, final);
}

/* Spools output into two files of SPOOL_HALF_BYTES each, so that the newest half is always whole. */
struct spool {
    int fd, which;
    long long in_half, total;
};

static void spool_write(struct job *j, struct spool *s, const char *data, size_t n) {
    char path[600];
    s->total += (long long)n;
    if (s->fd < 0 || s->in_half + (long long)n > SPOOL_HALF_BYTES) {
        if (s->fd >= 0) close(s->fd), s->which = !s->which;
        job_path(path, sizeof path, j->key, s->which ? "output.1" : "output.0");
        s->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        s->in_half = 0;
        char current[600];
        job_path(current, sizeof current, j->key, "current");
        unlink(current);
        (void)!symlink(s->which ? "output.1" : "output.0", current);
    }
    if (s->fd >= 0) (void)!write_all(s->fd, data, n), s->in_half += (long long)n;
}

static void *run_job(void *arg) {
    struct job *j = arg;
    struct spool s = {-1, 0, 0, 0};
    char *buf = malloc(CHUNK_BYTES);
    int timed_out = 0, exited = 0, open_pipe = 1;
    int64_t deadline = j->timeout_ms ? j->started_ms + j->timeout_ms : 0;
    while (open_pipe || !exited) {
        struct pollfd p[2] = {{open_pipe ? j->pipe_fd : -1, POLLIN, 0}, {exited ? -1 : j->child->event_fd, POLLIN, 0}};
        int wait = exited ? -1 : deadline ? (int)(deadline > now_ms() ? deadline - now_ms() : 0) : -1;
        int ready = poll(p, 2, wait);
        if (!exited && deadline && now_ms() >= deadline && !(ready > 0 && p[1].revents)) {
            kill_group(j->child->pid, timed_out ? SIGKILL : SIGTERM);
            timed_out = 1, deadline = now_ms() + KILL_GRACE_MS;
        }
        if (open_pipe && p[0].revents) {
            ssize_t n = read(j->pipe_fd, buf, CHUNK_BYTES);
            if (n > 0) spool_write(j, &s, buf, (size_t)n);
            else if (n == 0 || (errno != EAGAIN && errno != EINTR)) open_pipe = 0;
        }
        if (!exited && p[1].revents) {
            ssize_t n; /* drain what was written before the exit, then publish it */
            while (open_pipe && (n = read(j->pipe_fd, buf, CHUNK_BYTES)) > 0) spool_write(j, &s, buf, (size_t)n);
            exited = 1;
            if (timed_out || j->stop_wanted) kill_group(j->child->pid, SIGKILL);
            record_exit(j, exit_code(j->child->status), timed_out, s.total);
            pthread_mutex_lock(&jobs_lock);
            j->finished = 1;
            for (struct job **p2 = &jobs; *p2; p2 = &(*p2)->next)
                if (*p2 == j) {
                    *p2 = j->next;
                    break;
                }
            pthread_cond_broadcast(&jobs_changed);
            pthread_mutex_unlock(&jobs_lock);
        }
    }
    if (s.fd >= 0) close(s.fd);
    close(j->pipe_fd);
    forget_child(j->child);
    free(buf), free(j);
    return NULL;
}

static struct job *find_job(const char *key) {
    for (struct job *j = jobs; j; j = j->next)
        if (!strcmp(j->key, key)) return j;
    return NULL;
}

static size_t read_tail(const char *key, char *tail, size_t n) {
    char path[600], target[64] = "output.0";
    job_path(path, sizeof path, key, "current");
    ssize_t k = readlink(path, target, sizeof target - 1);
    if (k > 0) target[k] = 0;
    const char *names[2] = {target[7] == '1' ? "output.0" : "output.1", target[7] == '1' ? "output.1" : "output.0"};
    size_t have = 0;
    for (int i = 1; i >= 0 && have < n; i--) { /* newest half first, then as much of the older as still fits before it */
        job_path(path, sizeof path, key, names[i]);
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0) continue;
        off_t size = lseek(fd, 0, SEEK_END), want = size < (off_t)(n - have) ? size : (off_t)(n - have);
        memmove(tail + want, tail, have);
        ssize_t got = pread(fd, tail, (size_t)want, size - want);
        close(fd);
        if (got != want) memmove(tail + (got > 0 ? got : 0), tail + want, have);
        have += got > 0 ? (size_t)got : 0;
    }
    return have;
}

/* Frame j: "state code timed_out bytes duration_ms", a newline, then the tail of the output. */
static int send_status(int conn, struct request *r) {
    pthread_mutex_lock(&jobs_lock);
    int64_t until = now_ms() + (r->wait_ms > 30000 ? 30000 : r->wait_ms);
    struct job *j;
    while ((j = find_job(r->key)) && now_ms() < until) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        int64_t left = until - now_ms();
        t.tv_sec += left / 1000, t.tv_nsec += (left % 1000) * 1000000L;
        if (t.tv_nsec >= 1000000000L) t.tv_sec++, t.tv_nsec -= 1000000000L;
        pthread_cond_timedwait(&jobs_changed, &jobs_lock, &t);
    }
    int running = j != NULL;
    long long age = j ? (long long)(now_ms() - j->started_ms) : 0;
    pthread_mutex_unlock(&jobs_lock);

    char path[600], *buf = malloc(5 + 200 + TAIL_BYTES);
    if (!buf) return -1;
    int code = 0, timed_out = 0;
    long long bytes = 0, duration = age;
    const char *state = "running";
    if (!running) {
        struct stat st;
        job_path(path, sizeof path, r->key, "exit");
        FILE *f = fopen(path, "re");
        if (f && fscanf(f, "%d %d %lld %lld", &code, &timed_out, &bytes, &duration) == 4) state = "exited";
        else {
            job_path(path, sizeof path, r->key, "");
            state = stat(path, &st) ? "absent" : "lost";
        }
        if (f) fclose(f);
    }
    int head = snprintf(buf + 5, 200, "%s %d %d %lld %lld\n", state, code, timed_out, bytes, duration);
    size_t tail = strcmp(state, "absent") ? read_tail(r->key, buf + 5 + head, TAIL_BYTES) : 0;
    int k = send_in_place(conn, 'j', buf, (uint32_t)((size_t)head + tail));
    free(buf);
    return k;
}

/* Creating the directory is what claims the key: whoever comes second is told the first one's status. */
static int start_job(int conn, struct request *r) {
    char path[600], why[400];
    job_path(path, sizeof path, r->key, "");
    if (mkdir(path, 0700)) {
        if (errno == EEXIST) return send_status(conn, r);
        return send_text(conn, '!', "%s: cannot record the command in %s: %s", errno == ENOSPC || errno == EDQUOT ? "disk" : "setup",
                         jobs_dir, strerror(errno));
    }
    sync_dir(jobs_dir);
    int out[2], null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (pipe2(out, O_CLOEXEC)) {
        if (null >= 0) close(null);
        rmdir(path);
        return send_text(conn, '!', "setup: no descriptors left in the office");
    }
    struct job *j = calloc(1, sizeof *j);
    snprintf(j->key, sizeof j->key, "%s", r->key);
    j->started_ms = now_ms(), j->timeout_ms = r->timeout_ms, j->pipe_fd = out[0];
    pthread_mutex_lock(&jobs_lock);
    j->child = spawn(r, null, out[1], out[1], 0, why, sizeof why);
    close(out[1]), close(null);
    if (!j->child) {
        pthread_mutex_unlock(&jobs_lock);
        close(out[0]), free(j);
        rmdir(path); /* nothing ran: the key is free again */
        return send_text(conn, '!', "%s", why);
    }
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    j->next = jobs, jobs = j;
    pthread_mutex_unlock(&jobs_lock);
    if (spawn_thread(run_job, j)) {
        kill_group(j->child->pid, SIGKILL);
        return send_text(conn, '!', "memory: the office has no threads left");
    }
    return send_status(conn, r);
}

static int stop_job(int conn, struct request *r) {
    pthread_mutex_lock(&jobs_lock);
    struct job *j = find_job(r->key);
    pid_t pid = j ? j->child->pid : 0;
    if (j) j->stop_wanted = 1, kill_group(pid, SIGTERM);
    int64_t until = now_ms() + KILL_GRACE_MS;
    while (find_job(r->key)) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_nsec += 100000000L;
        if (t.tv_nsec >= 1000000000L) t.tv_sec++, t.tv_nsec -= 1000000000L;
        pthread_cond_timedwait(&jobs_changed, &jobs_lock, &t);
        if (now_ms() >= until && find_job(r->key)) kill_group(pid, SIGKILL), until = now_ms() + KILL_GRACE_MS;
    }
    pthread_mutex_unlock(&jobs_lock);
    return send_status(conn, r);
}

static int forget_job(int conn, struct request *r) {
    static const char *files[] = {"current", "output.0", "output.1", "exit.new", "exit"};
    char path[600];
    pthread_mutex_lock(&jobs_lock);
    int running = find_job(r->key) != NULL;
    pthread_mutex_unlock(&jobs_lock);
    if (!running) {
        for (size_t i = 0; i < sizeof files / sizeof *files; i++) job_path(path, sizeof path, r->key, files[i]), unlink(path);
        job_path(path, sizeof path, r->key, "");
        rmdir(path);
    }
    return send_status(conn, r);
}

/* --- byte streams -------------------------------------------------------------------------------------------------------- */

/* Copies both ways until both directions ended; a half-closed side is passed on. */
static void splice_both(int a, int b) {
    int fd[2] = {a, b}, open_from[2] = {1, 1};
    char *buf = malloc(CHUNK_BYTES);
    while (buf && (open_from[0] || open_from[1])) {
        struct pollfd p[2] = {{open_from[0] ? a : -1, POLLIN, 0}, {open_from[1] ? b : -1, POLLIN, 0}};
        if (poll(p, 2, -1) < 0 && errno != EINTR) break;
        for (int i = 0; i < 2; i++) {
            if (!open_from[i] || !p[i].revents) continue;
            ssize_t n = read(fd[i], buf, CHUNK_BYTES);
            if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
            if (n <= 0) {
                open_from[i] = 0;
                shutdown(fd[!i], SHUT_WR);
            } else if (write_all(fd[!i], buf, (size_t)n)) {
                open_from[0] = open_from[1] = 0;
            }
        }
    }
    free(buf);
}

static void dial_port(int conn, struct request *r) {
    char host[64];
    unsigned port;
    struct sockaddr_in a = {.sin_family = AF_INET};
    if (!r->argc || sscanf(r->argv[0], "%63[^:]:%u", host, &port) != 2 || inet_pton(AF_INET, host, &a.sin_addr) != 1) {
        send_text(conn, '!', "address: expected ADDRESS:PORT");
        return;
    }
    a.sin_port = htons((uint16_t)port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0 || connect(fd, (void *)&a, sizeof a)) {
        send_text(conn, '!', "dial: nothing listens on %s in the office (%s)", r->argv[0], strerror(errno));
    } else {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (!send_text(conn, 'p', "0")) splice_both(conn, fd);
    }
    if (fd >= 0) close(fd);
}

static void serve_ssh(int conn, struct request *r) {
    int pair[2];
    char why[400];
    char *argv[] = {"/usr/sbin/sshd", "-i", "-e", NULL};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        send_text(conn, '!', "setup: no descriptors left in the office");
        return;
    }
    mkdir("/run/sshd", 0755);
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    r->argc = 3, memcpy(r->argv, argv, sizeof argv), r->user = "root";
    struct child *c = spawn(r, pair[1], pair[1], null, 0, why, sizeof why);
    close(pair[1]), close(null);
    if (!c) {
        send_text(conn, '!', "%s", why);
        close(pair[0]);
        return;
    }
    if (!send_text(conn, 'p', "%d", c->pid)) splice_both(conn, pair[0]);
    close(pair[0]);
    end_child(c, SIGHUP);
    forget_child(c);
}

/* --- sessions -------------------------------------------------------------------------------------------------------------- */

static int sessions;

static int serve(int conn, struct request *r) {
    if (!strcmp(r->op, "ping")) return send_text(conn, 'p', "officed 1");
    if (!strcmp(r->op, "run")) return run_attached(conn, r), -1;
    if (!strcmp(r->op, "dial")) return dial_port(conn, r), -1;
    if (!strcmp(r->op, "ssh")) return serve_ssh(conn, r), -1;
    if (!strncmp(r->op, "job-", 4) && !valid_key(r->key)) return send_text(conn, '!', "key: not a valid key");
    if (!strcmp(r->op, "job-start")) return start_job(conn, r);
    if (!strcmp(r->op, "job-status")) return send_status(conn, r);
    if (!strcmp(r->op, "job-stop")) return stop_job(conn, r);
    if (!strcmp(r->op, "job-forget")) return forget_job(conn, r);
    return send_text(conn, '!', "op: this office's door does not know %.60s", r->op);
}

struct session {
    int conn;
    struct request *first;
};

static void *run_session(void *arg) {
    struct session s = *(struct session *)arg;
    free(arg);
    struct request *r = s.first;
    while (r) { /* questions and answers may follow one another on a connection; streams end it */
        int over = serve(s.conn, r);
        free_request(r);
        r = over ? NULL : read_request(s.conn);
    }
    close(s.conn);
    __atomic_sub_fetch(&sessions, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void *keep_dialling(void *unused) {
    (void)unused;
    for (int wait = REDIAL_MS_MIN;;) {
        int conn = dial_unix(door_path);
        if (conn < 0) {
            sleep_ms(wait);
            wait = wait * 2 > REDIAL_MS_MAX ? REDIAL_MS_MAX : wait * 2;
            continue;
        }
        wait = REDIAL_MS_MIN;
        struct request *r = read_request(conn);
        struct session *s = r ? malloc(sizeof *s) : NULL;
        if (!s) {
            free_request(r);
            close(conn);
            sleep_ms(REDIAL_MS_MIN);
            continue;
        }
        s->conn = conn, s->first = r;
        if (__atomic_add_fetch(&sessions, 1, __ATOMIC_RELAXED) > SESSIONS_MAX || spawn_thread(run_session, s)) {
            __atomic_sub_fetch(&sessions, 1, __ATOMIC_RELAXED);
            send_text(conn, '!', "busy: the office has too many sessions open");
            free_request(r), free(s), close(conn);
        }
    }
    return NULL;
}

/* --- forwards ---------------------------------------------------------------------------------------------------------------- */

struct forward {
    struct sockaddr_in address;
    const char *socket_path;
    int listener;
};

struct forwarded {
    int client;
    const char *socket_path;
};

static void *run_forwarded(void *arg) {
    struct forwarded f = *(struct forwarded *)arg;
    free(arg);
    int one = 1, up = dial_unix(f.socket_path);
    setsockopt(f.client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (up >= 0) splice_both(f.client, up), close(up);
    close(f.client);
    __atomic_sub_fetch(&sessions, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void *keep_forwarding(void *arg) {
    struct forward *f = arg;
    for (;;) {
        int client = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) {
            sleep_ms(10);
            continue;
        }
        struct forwarded *c = malloc(sizeof *c);
        if (c) c->client = client, c->socket_path = f->socket_path;
        if (!c || __atomic_add_fetch(&sessions, 1, __ATOMIC_RELAXED) > SESSIONS_MAX || spawn_thread(run_forwarded, c)) {
            if (c) __atomic_sub_fetch(&sessions, 1, __ATOMIC_RELAXED);
            free(c), close(client);
        }
    }
    return NULL;
}

static int start_forward(char *text) { /* ADDRESS:PORT=SOCKET */
    struct forward *f = calloc(1, sizeof *f);
    char host[64];
    unsigned port;
    int at = 0, one = 1;
    if (!f || sscanf(text, "%63[^:]:%u=%n", host, &port, &at) != 2 || !at) return -1;
    f->socket_path = text + at;
    f->address.sin_family = AF_INET, f->address.sin_port = htons((uint16_t)port);
    f->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(f->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (inet_pton(AF_INET, host, &f->address.sin_addr) != 1 || bind(f->listener, (void *)&f->address, sizeof f->address) ||
        listen(f->listener, 128))
        return -1;
    return spawn_thread(keep_forwarding, f);
}

/* --- start and stop -------------------------------------------------------------------------------------------------------------- */

static void make_dirs(const char *path) {
    char part[512];
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1; *p; p++)
        if (*p == '/') *p = 0, mkdir(part, 0755), *p = '/';
    mkdir(part, 0700);
}

int main(int argc, char **argv) {
    sigset_t held;
    sigemptyset(&held);
    sigaddset(&held, SIGCHLD);
    sigaddset(&held, SIGTERM);
    sigaddset(&held, SIGINT);
    sigaddset(&held, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &held, NULL);
    signal(SIGPIPE, SIG_IGN);
    umask(022);
    mallopt(M_ARENA_MAX, 1); /* an arena per thread would reserve more address space than a small office may have */
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&detached, THREAD_STACK_BYTES);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&jobs_changed, &monotonic);
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--door")) door_path = argv[i + 1];
        else if (!strcmp(argv[i], "--jobs")) jobs_dir = argv[i + 1];
        else if (!strcmp(argv[i], "--own-process-space")) own_process_space = !strcmp(argv[i + 1], "yes");
    }
    if (!door_path || !jobs_dir) {
        fprintf(stderr, "usage: officed --door SOCKET --jobs DIRECTORY [--own-process-space yes] [--forward ADDRESS:PORT=SOCKET]...\n");
        return 2;
    }
    make_dirs(jobs_dir);
    spawn_thread(reaper, NULL);
    for (int i = 0; i < IDLE_CONNECTIONS; i++) spawn_thread(keep_dialling, NULL);
    for (int i = 1; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], "--forward") && start_forward(argv[i + 1]))
            fprintf(stderr, "officed: cannot forward %s: %s\n", argv[i + 1], strerror(errno));
    int sig;
    sigdelset(&held, SIGCHLD);
    sigwait(&held, &sig);
    /* On a host (the fake sandbox) -1 would mean everybody: only the driver can say that all processes here are the office's. */
    if (own_process_space) kill(-1, SIGTERM);
    pthread_mutex_lock(&children_lock);
    for (struct child *c = children; c; c = c->next)
        if (!c->done) kill_group(c->pid, SIGTERM);
    pthread_mutex_unlock(&children_lock);
    for (int64_t until = now_ms() + STOP_GRACE_MS; now_ms() < until; sleep_ms(10)) {
        pthread_mutex_lock(&children_lock);
        int busy = 0;
        for (struct child *c = children; c; c = c->next) busy |= !c->done;
        pthread_mutex_unlock(&children_lock);
        if (!busy) break;
    }
    return 0;
}
