/* Jobs: commands that belong to a key. What is in --jobs/KEY survives us; `jobs` is what runs now. */
#include "officed.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

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

void init_jobs(void) { init_cond(&jobs_changed); }

static void job_path(char *path, size_t n, const char *key, const char *file) {
    snprintf(path, n, "%s/%s%s%s", jobs_dir, key, *file ? "/" : "", file);
}

static void sync_dir(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) fsync(fd), close(fd);
}

/* Whether the office itself is ending: what its jobs are ended by then is no exit of theirs, and they stay unknown. */
static int ending;

void leave_jobs_unknown(void) { __atomic_store_n(&ending, 1, __ATOMIC_SEQ_CST); }

/* The record appears whole or not at all. */
static void record_exit(struct job *j, int code, int timed_out, long long bytes) {
    char path[600], final[600];
    job_path(path, sizeof path, j->key, "exit.new");
    job_path(final, sizeof final, j->key, "exit");
    FILE *f = __atomic_load_n(&ending, __ATOMIC_SEQ_CST) ? NULL : fopen(path, "we");
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

size_t list_jobs(char *at, size_t room) {
    size_t n = 0;
    pthread_mutex_lock(&jobs_lock);
    for (struct job *j = jobs; j; j = j->next) n += add_line(at + n, room - n, "job %s", j->key);
    pthread_mutex_unlock(&jobs_lock);
    return n;
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
int send_status(int conn, struct request *r) {
    pthread_mutex_lock(&jobs_lock);
    int64_t until = now_ms() + (r->wait_ms > 30000 ? 30000 : r->wait_ms);
    struct job *j;
    while ((j = find_job(r->key)) && now_ms() < until) wait_cond(&jobs_changed, &jobs_lock, until - now_ms());
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
int start_job(int conn, struct request *r) {
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

int stop_job(int conn, struct request *r) {
    pthread_mutex_lock(&jobs_lock);
    struct job *j = find_job(r->key);
    pid_t pid = j ? j->child->pid : 0;
    if (j) j->stop_wanted = 1, kill_group(pid, SIGTERM);
    int64_t until = now_ms() + KILL_GRACE_MS;
    while (find_job(r->key)) {
        wait_cond(&jobs_changed, &jobs_lock, 100);
        if (now_ms() >= until && find_job(r->key)) kill_group(pid, SIGKILL), until = now_ms() + KILL_GRACE_MS;
    }
    pthread_mutex_unlock(&jobs_lock);
    return send_status(conn, r);
}

/* Drops the output. The key stays known, so that a late caller cannot start the same effect again; the directory and the
 * exit in it go after FORGOTTEN_DAYS (`prune_jobs`). */
int forget_job(int conn, struct request *r) {
    static const char *files[] = {"current", "output.0", "output.1", "exit.new"};
    char path[600];
    pthread_mutex_lock(&jobs_lock);
    int running = find_job(r->key) != NULL;
    pthread_mutex_unlock(&jobs_lock);
    for (size_t i = 0; i < sizeof files / sizeof *files && !running; i++) {
        job_path(path, sizeof path, r->key, files[i]);
        unlink(path);
    }
    return send_status(conn, r);
}

/* At start: removes what was forgotten long ago. A forgotten job is a directory with an exit and no output. */
void *prune_jobs(void *unused) {
    (void)unused;
    DIR *dir = opendir(jobs_dir);
    time_t oldest = time(NULL) - FORGOTTEN_DAYS * 86400;
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char exit_path[600], current[600];
        struct stat st;
        if (!valid_key(entry->d_name)) continue;
        job_path(exit_path, sizeof exit_path, entry->d_name, "exit");
        job_path(current, sizeof current, entry->d_name, "current");
        if (stat(exit_path, &st) || st.st_mtime > oldest || !lstat(current, &st)) continue;
        unlink(exit_path);
        job_path(exit_path, sizeof exit_path, entry->d_name, "");
        rmdir(exit_path);
    }
    if (dir) closedir(dir);
    return NULL;
}
