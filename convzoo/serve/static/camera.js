// A photograph from the camera: on the page where the browser lets us, else by the telephone's own camera.
const at = (id) => document.getElementById(id);
let stream = null;

export async function photograph(take) {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch { // no camera, not allowed, or a page that did not come over a secure connection
    at("camera").click();
    return;
  }
  at("video").srcObject = stream;
  at("shoot").onclick = () => shoot(take);
  at("leave").onclick = () => at("viewfinder").close();
  at("viewfinder").onclose = stop;
  at("viewfinder").showModal();
}

function shoot(take) {
  const video = at("video");
  if (!video.videoWidth) return;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  at("viewfinder").close();
  canvas.toBlob((blob) => take([new File([blob], "photograph.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.95);
}

function stop() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = at("video").srcObject = null;
}
